//! Nothing: what is built is a dependency.
