//! Makes the manual pages and completions of mlskeyd's programs, for packages:
//! `cargo xtask man DIR` and `cargo xtask completions DIR`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

/// What is said of this program to whoever calls it wrongly.
const USAGE: &str = "usage: pages man|completions DIR";

/// The sample of the configuration, which is its reference.
const SAMPLE: &str = include_str!("../../docs/mlskeyd.toml");

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [what, dir] = arguments.as_slice() else {
        return failed(2, USAGE);
    };
    let dir = PathBuf::from(dir);
    let made = fs::create_dir_all(&dir).and_then(|()| match what.to_str() {
        Some("man") => man(&dir),
        Some("completions") => completions(&dir),
        _ => Err(io::Error::other(USAGE)),
    });
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(1, &format!("{}: {error}", dir.display())),
    }
}

fn failed(code: u8, why: &str) -> ExitCode {
    eprintln!("pages: {why}");
    ExitCode::from(code)
}

fn completions(dir: &Path) -> io::Result<()> {
    let mut command = mlskeyd::ctl::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "mlskeyctl", dir)?;
    }
    Ok(())
}

fn man(dir: &Path) -> io::Result<()> {
    let mut ctl = mlskeyd::ctl::command().disable_help_subcommand(true);
    ctl.build();
    pages(&ctl, &["mlskeyd(8)"], dir)?;
    let daemon = mlskeyd::arguments::Arguments::command();
    page(&daemon, "8", &["mlskeyd.toml(5)", "mlskeyctl(1)"], dir)?;
    fs::write(dir.join("mlskeyd.toml.5"), configuration())
}

/// The page of a command, and those of the ones below it.
fn pages(command: &Command, see: &[&str], dir: &Path) -> io::Result<()> {
    page(command, "1", see, dir)?;
    let above = format!("{}(1)", name(command));
    for below in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        pages(below, &[&above], dir)?;
    }
    Ok(())
}

fn name(command: &Command) -> &str {
    command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
}

fn page(command: &Command, section: &str, see: &[&str], dir: &Path) -> io::Result<()> {
    let man = Man::new(command.clone())
        .section(section)
        .source(concat!("mlskeyd ", env!("CARGO_PKG_VERSION")))
        .manual("mlskeyd");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    if command.get_arguments().any(|it| !it.is_hide_set()) {
        man.render_options_section(&mut text)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    // clap_mangen would fill its lines, and these are laid out.
    let notes = command
        .get_after_long_help()
        .or_else(|| command.get_after_help());
    if let Some(notes) = notes {
        text.extend(literal("NOTES", &notes.to_string()).bytes());
    }
    text.extend(format!(".SH \"SEE ALSO\"\n{}\n", escaped(&see.join(", "))).bytes());
    fs::write(dir.join(format!("{}.{section}", name(command))), text)
}

fn configuration() -> String {
    let mut text = String::new();
    let source = concat!("mlskeyd ", env!("CARGO_PKG_VERSION"));
    let _ = writeln!(text, ".TH mlskeyd.toml 5 \"\" \"{source}\" \"mlskeyd\"");
    text.push_str(".SH NAME\nmlskeyd.toml \\- the configuration of mlskeyd\n");
    text.push_str(".SH SYNOPSIS\n/etc/mlskeyd/mlskeyd.toml\n");
    text.push_str(&literal("DESCRIPTION", SAMPLE));
    text.push_str(".SH \"SEE ALSO\"\nmlskeyd(8), mlskeyctl(1)\n");
    text
}

/// A section whose lines stay as they are.
fn literal(heading: &str, lines: &str) -> String {
    let mut text = format!(".SH {heading}\n.nf\n");
    for line in lines.trim_end().lines() {
        // At the start of a line these are commands.
        if line.starts_with(['.', '\'']) {
            text.push_str("\\&");
        }
        text.push_str(&escaped(line));
        text.push('\n');
    }
    text.push_str(".fi\n");
    text
}

/// What roff would read as something else.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '`' => escaped.push_str("\\(ga"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            c => escaped.push(c),
        }
    }
    escaped
}
