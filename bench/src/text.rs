//! Text that others wrote, before it is shown: no control character may steer a terminal or a reader's eye.

use std::fmt::{self, Write as _};

/// How much of one text is shown; what a run writes is cut to less, but a file may come from anywhere.
const SHOWN: usize = 4000;

/// What is written for a character that must not act: a picture of it where Unicode has one. Line ends and tabs
/// are for the caller to judge.
pub fn visible(c: char) -> char {
    match c {
        '\n' | '\t' => c,
        '\0'..='\x1f' => char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'),
        '\x7f' => '\u{2421}',
        // C1; separators and marks that turn the direction of what follows (Unicode TR 36, 2.6).
        '\u{80}'..='\u{9f}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            '\u{fffd}'
        }
        '\u{feff}' | '\u{fff9}'..='\u{fffb}' => '\u{fffd}',
        _ => c,
    }
}

/// Lines for a terminal.
pub fn visible_text(text: &str) -> String {
    text.chars().map(visible).collect()
}

/// One line for a terminal.
pub fn line(text: &str) -> String {
    let shown = |c| if matches!(c, '\n' | '\t') { ' ' } else { visible(c) };
    cut(text).map(shown).collect()
}

/// The same, and no more of it than there is room for.
pub fn brief(text: &str, room: usize) -> String {
    let shown = line(text);
    match shown.char_indices().nth(room) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    }
}

/// A name, as a table has room for.
pub fn name(text: &str) -> String {
    brief(text, 100)
}

/// Text inside an HTML element or a quoted attribute, and nothing else: no text ends either.
#[derive(Debug, Clone, Copy)]
pub struct Html<'a>(pub &'a str);

impl fmt::Display for Html<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in cut(self.0) {
            match visible(c) {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The same of a name, a title or a unit: in short, and in one line.
#[derive(Debug, Clone, Copy)]
pub struct Name<'a>(pub &'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Html(&name(self.0)).fmt(f)
    }
}

fn cut(text: &str) -> impl Iterator<Item = char> {
    let rest = if text.chars().nth(SHOWN).is_some() { "…" } else { "" };
    text.chars().take(SHOWN).chain(rest.chars())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_an_element_or_an_attribute() {
        let shown = Html("<script>alert('1')</script>\" onload=x & ]]> \u{202e}\0\x1b[31m\n").to_string();
        assert_eq!(
            shown,
            "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot; onload=x &amp; ]]&gt; \u{fffd}␀␛[31m\n"
        );
    }

    #[test]
    fn a_terminal_gets_one_line_without_commands() {
        assert_eq!(line("a\nb\x1b]0;title\x07\u{9b}1m\r"), "a b␛]0;title␇\u{fffd}1m␍");
    }

    #[test]
    fn long_text_is_cut_and_says_so() {
        let shown = line(&"é".repeat(SHOWN + 1));
        assert_eq!(shown.chars().count(), SHOWN + 1);
        assert!(shown.ends_with('…'));
        assert_eq!(line(&"é".repeat(SHOWN)).chars().count(), SHOWN);
        assert_eq!((name("bare"), name(&"é".repeat(101))), ("bare".into(), format!("{}…", "é".repeat(100))));
    }
}
