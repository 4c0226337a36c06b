//! Tables that fit the terminal.

use std::io::IsTerminal;

/// Between two columns.
const GAP: &str = "  ";

/// No column is narrower than this many characters because of others: so the widest table, of
/// ten columns, has room on 80.
const NARROWEST: usize = 6;

/// Lays rows out under their titles. On a terminal that is too narrow the widest columns go on
/// below: nothing is cut, since names and ids are given to other commands. What apps named must
/// not speak to the terminal, so control characters are shown escaped.
pub(super) fn table<const N: usize>(
    titles: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    table_in(titles, rows, terminal_width())
}

fn table_in<const N: usize>(
    titles: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
    room: Option<usize>,
) -> String {
    let rows = std::iter::once(titles.map(str::to_owned)).chain(rows);
    let (rows, mut widths) = measured(rows);
    if let Some(room) = room {
        shrink(&mut widths, room);
    }
    lines("", rows, &widths)
}

/// Rows that may be shown, and how wide their columns are.
fn measured<const N: usize>(
    rows: impl IntoIterator<Item = [String; N]>,
) -> (Vec<[String; N]>, [usize; N]) {
    let rows: Vec<[String; N]> = rows
        .into_iter()
        .map(|row| row.map(|cell| printable(&cell)))
        .collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    (rows, widths)
}

/// The same text, with control characters and what reorders text escaped.
pub(super) fn printable(text: &str) -> String {
    let speaks = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if speaks(c) {
            shown.extend(c.escape_unicode())
        } else {
            shown.push(c)
        }
    }
    shown
}

/// Lays rows out with a margin, and goes on below where the last column reaches
/// the edge of the terminal: nothing is cut.
pub(super) fn wrapped<const N: usize>(
    margin: &str,
    rows: impl IntoIterator<Item = [String; N]>,
    room: Option<usize>,
) -> String {
    let (rows, mut widths) = measured(rows);
    if let (Some(room), Some((last, before))) = (room, widths.split_last_mut()) {
        let gaps = GAP.len().saturating_mul(before.len());
        let before = before.iter().sum::<usize>().saturating_add(gaps);
        let left = room.saturating_sub(margin.len()).saturating_sub(before);
        *last = left.max(NARROWEST).min(*last);
    }
    lines(margin, rows, &widths)
}

/// Rows, of which a cell goes on below where its column ends.
fn lines<const N: usize>(margin: &str, rows: Vec<[String; N]>, widths: &[usize; N]) -> String {
    let mut text = String::new();
    for mut rest in rows {
        loop {
            let mut now = std::mem::replace(&mut rest, [const { String::new() }; N]);
            for ((cell, below), width) in now.iter_mut().zip(&mut rest).zip(widths) {
                let after = cell.split_off(break_at(cell, *width));
                after.trim_start().clone_into(below);
            }
            let line = format!("{margin}{}", line(&now, widths));
            text.push_str(line.trim_end());
            text.push('\n');
            if rest.iter().all(String::is_empty) {
                break;
            }
        }
    }
    text
}

/// Where a text ends that has so much room, in bytes: after a word, if one ends
/// there.
fn break_at(text: &str, width: usize) -> usize {
    let Some((edge, _)) = text.char_indices().nth(width) else {
        return text.len();
    };
    let fits = text.get(..edge).unwrap_or(text);
    let next_is_space = text.get(edge..).is_some_and(|rest| rest.starts_with(' '));
    match fits.rfind(' ') {
        Some(space) if !next_is_space && space > 0 => space,
        _ => edge,
    }
}

fn line<const N: usize>(row: &[String; N], widths: &[usize; N]) -> String {
    let mut line = String::new();
    for (cell, &width) in row.iter().zip(widths) {
        line.push_str(cell);
        let length = cell.chars().count();
        line.extend(std::iter::repeat_n(' ', width.saturating_sub(length)));
        line.push_str(GAP);
    }
    line
}

/// Takes from the widest column until all fit.
fn shrink(widths: &mut [usize], room: usize) {
    let gaps = GAP.len().saturating_mul(widths.len().saturating_sub(1));
    let room = room.saturating_sub(gaps);
    while widths.iter().sum::<usize>() > room {
        match widths.iter_mut().max() {
            Some(widest) if *widest > NARROWEST => *widest = widest.saturating_sub(1),
            _ => break,
        }
    }
}

pub(super) fn terminal_width() -> Option<usize> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(stdout).ok()?;
    (size.ws_col > 0).then_some(size.ws_col.into())
}

/// A length of time for people: two units are never needed.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A moment for people, in UTC, from seconds since 1970.
pub(super) fn date(seconds: u64) -> String {
    // Eras of 400 years, which begin on a 1st of March: leap days come last.
    let days = (seconds / 86_400).saturating_add(719_468);
    let (era, day) = (days / 146_097, days % 146_097);
    let leap_days = (day / 1_460)
        .saturating_add(day / 146_096)
        .saturating_sub(day / 36_524);
    let year = day.saturating_sub(leap_days) / 365;
    let before = year
        .saturating_mul(365)
        .saturating_add(year / 4)
        .saturating_sub(year / 100);
    let day = day.saturating_sub(before);
    let month = day.saturating_mul(5).saturating_add(2) / 153;
    let first = month.saturating_mul(153).saturating_add(2) / 5;
    let day = day.saturating_sub(first).saturating_add(1);
    let (next, month) = match month {
        0..10 => (0, month.saturating_add(3)),
        _ => (1, month.saturating_sub(9)),
    };
    let year = era
        .saturating_mul(400)
        .saturating_add(year)
        .saturating_add(next);
    let (hour, minute) = (seconds / 3_600 % 24, seconds / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_the_terminal_is_not_spoken_to() {
        let text = table(
            ["NAME", "TIER"],
            [
                ["alice".into(), "software".into()],
                ["\u{1b}[31m".into(), "x".into()],
            ],
        );
        assert_eq!(
            text,
            "NAME        TIER\nalice       software\n\\u{1b}[31m  x\n"
        );
        assert_eq!(printable("a\u{202e}b\n"), "a\\u{202e}b\\u{a}");
    }

    #[test]
    fn the_widest_column_gives_way_first() {
        let mut widths = [4, 30, 10];
        shrink(&mut widths, 40);
        assert_eq!(widths, [4, 22, 10]);
        shrink(&mut widths, 1);
        assert_eq!(widths, [4, 6, 6]);
    }

    #[test]
    fn a_table_fits_and_nothing_of_long_names_is_lost() {
        let key = "0123456789abcdef0123456789abcdef";
        let long = "someone-with-a-very-long-name-indeed@a-subsidiary-of-the-company.example.com";
        let row = [
            key,
            "1000/default",
            "signature",
            "ECDSA P-384",
            "hardware",
            "yubikey-of-alice",
            "retiring until 2027-01-01 08:00 UTC",
            "12",
            "100 d",
            long,
        ];
        let titles = [
            "KEY",
            "OWNER",
            "PURPOSE",
            "ALGORITHM",
            "TIER",
            "DEVICE",
            "STATE",
            "CLAIMS",
            "AGE",
            "IDENTITY",
        ];
        for room in [80, 100, 132] {
            let text = table_in(titles, [row.map(str::to_owned)], Some(room));
            let fits = |line: &str| line.chars().count() <= room;
            assert!(text.lines().all(fits), "{room}:\n{text}");
            let all = |text: &str| {
                let mut letters: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
                letters.sort_unstable();
                letters
            };
            assert_eq!(all(&text), all(&(titles.concat() + &row.concat())));
        }
        // A program that reads it has each row on a line.
        let text = table_in(titles, [row.map(str::to_owned)], None);
        assert!(text.lines().nth(1).is_some_and(|line| line.ends_with(long)));
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn what_is_too_long_goes_on_below_and_nothing_is_lost() {
        let rows = |text: &str| {
            [
                ["a".to_owned(), text.to_owned()],
                ["bc".to_owned(), String::new()],
            ]
        };
        let shown = wrapped("  ", rows("one two three four"), Some(16));
        assert_eq!(shown, "  a   one two\n      three four\n  bc\n");
        let shown = wrapped("  ", rows("one two three four"), None);
        assert_eq!(shown, "  a   one two three four\n  bc\n");
        // What has no spaces, and what would speak to the terminal.
        let shown = wrapped("", rows("0123456789\u{1b}ab"), Some(12));
        assert_eq!(shown, "a   01234567\n    89\\u{1b}\n    ab\nbc\n");
        // Narrower than anybody could read.
        let shown = wrapped("", rows("0123456789"), Some(1));
        assert_eq!(shown, "a   012345\n    6789\nbc\n");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, shown) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_827_696, "2000-02-29 12:34 UTC"),
            (1_709_251_199, "2024-02-29 23:59 UTC"),
            (1_735_689_599, "2024-12-31 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(date(seconds), shown);
        }
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(duration(119), "119 s");
        assert_eq!(duration(7_199), "119 min");
        assert_eq!(duration(3 * 86_400), "3 d");
    }
}
