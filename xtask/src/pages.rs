//! `cargo xtask man` and `cargo xtask completions`: what packages install beside the programs.

use std::path::PathBuf;

use crate::steps::Steps;
use crate::{cargo, root};

/// What is made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    Man,
    Completions,
}

impl Pages {
    const fn word(&self) -> &'static str {
        match self {
            Self::Man => "man",
            Self::Completions => "completions",
        }
    }
}

/// Makes them in this directory, or below `target`.
pub(crate) fn run(pages: &Pages, dir: Option<PathBuf>) -> Result<(), String> {
    let word = pages.word();
    // Relative to where we were called, and the program runs at the root.
    let dir = match dir {
        None => root().join("target").join(word),
        Some(dir) => std::path::absolute(&dir).map_err(|error| error.to_string())?,
    };
    let example = ["run", "--package", "mlskeyd", "--example", "pages", "--"];
    let mut command = cargo(&example);
    command.arg(word).arg(&dir);
    let mut steps = Steps::default();
    steps.command(word, command);
    steps.finish()?;
    println!("they are in {}", dir.display());
    Ok(())
}
