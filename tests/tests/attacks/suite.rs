//! The cipher suites of custody, each with tests of its own.

pub use mlskeyd_tests::suite::*;

/// Makes each function of a suite four tests, so that a failure names the
/// suite.
macro_rules! for_each_suite {
    ($($attack:ident),+ $(,)?) => {
        mod suite_0x0001 {
            $(#[test] fn $attack() { super::$attack($crate::suite::SUITE_1); })+
        }
        mod suite_0x0002 {
            $(#[test] fn $attack() { super::$attack($crate::suite::SUITE_2); })+
        }
        mod suite_0x0003 {
            $(#[test] fn $attack() { super::$attack($crate::suite::SUITE_3); })+
        }
        mod suite_0x0007 {
            $(#[test] fn $attack() { super::$attack($crate::suite::SUITE_7); })+
        }
    };
}
pub(crate) use for_each_suite;
