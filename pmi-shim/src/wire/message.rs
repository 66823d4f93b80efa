//! A message: its command and its fields, in either protocol's spelling.

use super::{Frame, Malformed, shown};

/// More fields than any message has (a spawn request has some for each argument).
const MAX_FIELDS: usize = 16384;

/// Which protocol a message is, or shall be, in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `cmd=put key=a value=b`, a line.
    One,
    /// `    25cmd=kvs-put;key=a;value=b;`
    Two,
}

/// A command with its fields, in their order. Names may occur more than once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The command's name.
    pub command: String,
    /// Names and values.
    pub fields: Vec<(String, String)>,
}

impl Message {
    /// A message without fields.
    pub fn new(command: impl Into<String>) -> Message {
        Message { command: command.into(), fields: Vec::new() }
    }

    /// With one field more.
    pub fn with(mut self, name: &str, value: impl ToString) -> Message {
        self.fields.push((name.to_owned(), value.to_string()));
        self
    }

    /// A field's value: the first, where there are several.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A field's value as a number.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.get(name)?.trim().parse().ok()
    }

    /// Parses a frame.
    pub fn parse(frame: &Frame) -> Result<Message, Malformed> {
        let (bytes, separators): (_, &[char]) = match frame {
            Frame::Line(bytes) => (bytes, &[' ']),
            // Arguments of a command that is to be spawned hold blanks.
            Frame::Block(bytes) => (bytes, &['\n']),
            Frame::Two(bytes) => return Message::parse_two(bytes),
        };
        let text = text(bytes)?;
        Message::from_parts(bytes, text.split(separators).map(str::to_owned))
    }

    /// `;` ends a field, `;;` stands for itself (slurm's pmi2 client.c; MPICH's pmi_wire.c).
    fn parse_two(bytes: &[u8]) -> Result<Message, Malformed> {
        let text = text(bytes)?;
        let mut parts = Vec::new();
        let mut part = String::new();
        let mut characters = text.chars().peekable();
        while let Some(c) = characters.next() {
            match c {
                ';' if characters.peek() == Some(&';') => {
                    characters.next();
                    part.push(';');
                }
                ';' => parts.push(std::mem::take(&mut part)),
                c => part.push(c),
            }
        }
        parts.push(part);
        Message::from_parts(bytes, parts.into_iter())
    }

    fn from_parts(bytes: &[u8], parts: impl Iterator<Item = String>) -> Result<Message, Malformed> {
        let mut fields = Vec::new();
        for part in parts {
            // A part without `=` belongs to a text with blanks (an abort's message); nothing needs it.
            if let Some((name, value)) = part.split_once('=') {
                fields.push((name.to_owned(), value.to_owned()));
            }
            if fields.len() > MAX_FIELDS {
                return Err(Malformed(format!("a message of more than {MAX_FIELDS} fields")));
            }
        }
        match fields.first() {
            Some((name, _)) if name == "cmd" || name == "mcmd" => {
                let command = fields.remove(0).1;
                Ok(Message { command, fields })
            }
            _ => Err(Malformed(format!("a message without a command: {}", shown(bytes)))),
        }
    }

    /// As bytes. In PMI-1 no name or value may hold a blank or the end of a line: they become `_`.
    pub fn encode(&self, protocol: Protocol) -> Vec<u8> {
        match protocol {
            Protocol::One => {
                let mut out = format!("cmd={}", self.command);
                for (name, value) in &self.fields {
                    out.push(' ');
                    out.push_str(name);
                    out.push('=');
                    out.extend(value.chars().map(|c| if c == ' ' || c == '\n' { '_' } else { c }));
                }
                out.push('\n');
                out.into_bytes()
            }
            Protocol::Two => {
                let doubled = |text: &str| text.replace(';', ";;");
                let mut body = format!("cmd={};", doubled(&self.command));
                for (name, value) in &self.fields {
                    body.push_str(&doubled(name));
                    body.push('=');
                    body.push_str(&doubled(value));
                    body.push(';');
                }
                format!("{:6}{body}", body.len()).into_bytes()
            }
        }
    }
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed(format!("a message that is no text: {}", shown(bytes))))
}

#[cfg(test)]
mod tests {
    use super::super::Frames;
    use super::*;
    use proptest::prelude::*;

    fn one(line: &str) -> Message {
        Message::parse(&Frame::Line(line.as_bytes().to_vec())).unwrap()
    }

    #[test]
    fn fields_end_at_the_first_equals_sign() {
        let m = one("cmd=put kvsname=k key=P0 value=a=b=  ");
        assert_eq!((m.command.as_str(), m.get("value"), m.get("key")), ("put", Some("a=b="), Some("P0")));
        assert_eq!(one("cmd=abort exitcode=7 message=it is over").number("exitcode"), Some(7));
        for bad in ["key=a", "", "cmd"] {
            assert!(Message::parse(&Frame::Line(bad.into())).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn blocks_hold_blanks_and_doubled_semicolons_stand_for_themselves() {
        let block = Message::parse(&Frame::Block(b"mcmd=spawn\nexecname=a b\nargcnt=0\n".to_vec())).unwrap();
        assert_eq!((block.command.as_str(), block.get("execname")), ("spawn", Some("a b")));
        let two = Message::parse(&Frame::Two(b"cmd=kvs-put;key=a;;b;value=;;;;;".to_vec())).unwrap();
        assert_eq!((two.get("key"), two.get("value")), (Some("a;b"), Some(";;")));
        // In a command that we do not know, and whose name we repeat, and in names too.
        let odd = Message::new("a;rc=0").with("b;c", ";");
        let bytes = odd.encode(Protocol::Two);
        assert_eq!(Message::parse(&Frame::Two(bytes[6..].to_vec())).unwrap(), odd);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_what_is_parsed(
            command in "[a-z_-]{1,12}",
            fields in prop::collection::vec(("[a-z]{1,8}", "[!-~]{0,40}"), 0..6),
        ) {
            let message = Message { command, fields };
            for protocol in [Protocol::One, Protocol::Two] {
                let mut frames = Frames::default();
                frames.push(&message.encode(protocol));
                let frame = frames.frame().unwrap().unwrap();
                prop_assert_eq!(Message::parse(&frame).unwrap(), message.clone());
                prop_assert_eq!(frames.pending(), 0);
            }
        }

        #[test]
        fn nothing_that_comes_in_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut frames = Frames::default();
            frames.push(&bytes);
            while let Ok(Some(frame)) = frames.frame() {
                let _ = Message::parse(&frame);
            }
        }
    }
}
