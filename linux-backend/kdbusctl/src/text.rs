//! Small conversions between what the bus tells and what people read.

use std::fmt::Write;

/// Bytes as hex digits, without anything between them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes that hex digits stand for; blanks and colons between bytes are left out.
pub(crate) fn unhex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace() && *c != ':')
        .map(|c| c.to_digit(16).map(|digit| digit as u8).ok_or_else(|| format!("{c:?} is no hex digit")))
        .collect::<Result<_, _>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("an odd number of hex digits; give two for each byte".into());
    }
    Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// The login name of a user, or its number where the system has no name for it.
pub(crate) fn user(uid: u64) -> String {
    let names = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    user_in(&names, uid).map_or_else(|| uid.to_string(), str::to_owned)
}

fn user_in(passwd: &str, uid: u64) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// Text from a process or a file system, with control characters made visible: it is not to be trusted.
pub(crate) fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .flat_map(|c| {
            let escape = c.is_control();
            c.escape_default().filter(move |_| escape).chain(std::iter::once(c).filter(move |_| !escape))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_goes_both_ways() {
        assert_eq!(hex(&[0, 0xab, 7]), "00ab07");
        assert_eq!(unhex("00 ab:07"), Ok(vec![0, 0xab, 7]));
        assert_eq!(unhex(""), Ok(vec![]));
        assert!(unhex("abc").unwrap_err().contains("odd"));
        assert!(unhex("0x").unwrap_err().contains("'x'"));
    }

    #[test]
    fn users_have_names_if_the_system_knows_them() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\nmix:x:12:3::/:/bin/false\n";
        assert_eq!(user_in(passwd, 12), Some("mix"));
        assert_eq!(user_in(passwd, 3), None);
    }

    #[test]
    fn what_a_process_calls_itself_cannot_move_the_cursor() {
        assert_eq!(shown(b"a\x1b[2Jb\n\xff"), "a\\u{1b}[2Jb\\n\u{fffd}");
    }
}
