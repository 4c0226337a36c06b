mod app;
mod claims;
mod codecs;
mod life;
mod model;
mod transactions;
mod two_phase;
