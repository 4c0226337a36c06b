//! What many measured numbers come to.

use std::fmt;

/// The middle one.
///
/// # Panics
/// If there is none.
pub fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// A median, and the range of the middle half of all: how far noise goes.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// A quarter are below.
    pub low: f64,
    /// A quarter are above.
    pub high: f64,
}

impl Spread {
    /// That of some numbers.
    ///
    /// # Panics
    /// If there are none.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        Self {
            median: median(&mut numbers),
            low: numbers[numbers.len() / 4],
            high: numbers[numbers.len() * 3 / 4],
        }
    }
}

/// With as many decimals as the format asks for.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, low, high } = self;
        let decimals = f.precision().unwrap_or(2);
        write!(
            f,
            "{median:.decimals$} ({low:.decimals$} to {high:.decimals$})"
        )
    }
}
