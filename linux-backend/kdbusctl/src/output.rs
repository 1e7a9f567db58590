//! How results are shown.

use std::fmt::Display;
use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};

use crate::failure::Failure;

/// Prints one line, so that whoever reads the other end has it at once.
pub(crate) fn line(line: impl Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Prints `text`, with a line end behind it unless it has one or is empty.
pub(crate) fn block(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.is_empty() && !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// A table without lines, made for eyes and for `awk`.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table.add_rows(rows);
    flush_left(&mut table)
}

/// A table of keys and values.
pub(crate) fn sheet(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.add_rows(rows.into_iter().map(|(key, value)| [key.to_owned(), value]));
    flush_left(&mut table)
}

fn flush_left(table: &mut Table) -> String {
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_carry_no_blanks_at_the_end() {
        let rows = [["7".into(), "a".into()], ["12".into(), String::new()]];
        assert_eq!(table(["ID", "NAMES"], rows), "ID  NAMES\n7   a\n12");
    }
}
