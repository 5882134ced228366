//! Tables with aligned columns, and times in them.

use std::io::{self, Write};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Writes `rows` under `headings`, each column as wide as its widest cell, with two blanks between columns.
pub(super) fn write_table<const COLUMNS: usize>(
    out: &mut dyn Write,
    headings: [&str; COLUMNS],
    rows: &[[String; COLUMNS]],
) -> io::Result<()> {
    let mut widths = headings.map(|heading| heading.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    write_row(out, &widths, &headings)?;
    for row in rows {
        write_row(out, &widths, &row.each_ref().map(String::as_str))?;
    }
    Ok(())
}

fn write_row(out: &mut dyn Write, widths: &[usize], cells: &[&str]) -> io::Result<()> {
    let mut line = String::new();
    for (width, cell) in widths.iter().zip(cells) {
        line.push_str(cell);
        let blanks = width.saturating_sub(cell.chars().count()) + 2;
        line.extend(std::iter::repeat_n(' ', blanks));
    }
    writeln!(out, "{}", line.trim_end())
}

/// A time as tables show it.
pub(super) fn to_the_second(moment: OffsetDateTime) -> String {
    let rounded = moment.replace_nanosecond(0).expect("0 is a nanosecond");
    // Only years beyond 9999 cannot be formatted, and no time here is that late.
    rounded.format(&Rfc3339).unwrap_or_else(|_| rounded.unix_timestamp().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut out = Vec::new();
        let rows = [["é".to_owned(), "2".to_owned()], ["three".to_owned(), String::new()]];
        write_table(&mut out, ["A", "LONG"], &rows).expect("written");
        assert_eq!(String::from_utf8(out).expect("text"), "A      LONG\né      2\nthree\n");
    }
}
