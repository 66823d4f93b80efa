//! The environment and working directory that an image brings along.
//!
//! Read, in this order, later ones winning: what a store says of its image (OCI configuration), `config.json` beside a
//! root file system (an OCI runtime bundle or an OCI image configuration), `/ch/environment` (Charliecloud),
//! `/.singularity.d/env/*.sh` (Singularity, Apptainer: shell, of which assignments and conditions on variables are
//! understood; what is not is said).

use std::path::{Path, PathBuf};

use abi_probe::rootfs::{Kind as FileKind, View};
use image_store::bundle;
use image_store::layout::Runtime;
use serde::{Deserialize, Serialize};

use super::{Image, Kind};
use crate::error::{Result, in_image};
use crate::plan::environment::DEFAULT_PATH;

/// What Singularity's and Apptainer's images run.
const RUNSCRIPT: &str = "/.singularity.d/runscript";
/// No environment file is as large.
const MAX_FILE: u64 = 1 << 20;
const MAX_SCRIPTS: usize = 256;
/// execve(2) takes no longer string (MAX_ARG_STRLEN).
const MAX_VALUE: usize = 128 << 10;
/// Of blocks in blocks.
const MAX_BLOCKS: usize = 64;
/// No image has as many variables.
const MAX_VARIABLES: usize = 4096;

/// What the image says of how its programs want to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageEnvironment {
    /// Variables, in order.
    pub env: Vec<(String, String)>,
    /// Its working directory.
    pub workdir: Option<PathBuf>,
    /// What it runs when nothing is named.
    pub entry: Vec<String>,
    /// Lines that were not understood, with their file.
    pub notes: Vec<String>,
}

/// A block of a script.
struct Block {
    /// The word that ends it.
    end: &'static str,
    /// What it holds counts.
    is_live: bool,
    /// None of its branches has been taken yet, and one may be.
    may_follow: bool,
}

impl ImageEnvironment {
    /// Reads it from the image in `view`, which is called `given`, and what is known of it from outside.
    pub fn read(image: Option<&Image>, given: &Path, view: &View) -> Result<ImageEnvironment> {
        let mut found = ImageEnvironment::default();
        if let Some(record) = image.and_then(|image| image.record.as_ref()) {
            found.runtime(&record.config);
        }
        if let Some(image) = image.filter(|image| image.kind == Kind::Directory) {
            match bundle::beside(&image.path) {
                Ok(Some(runtime)) => found.runtime(&runtime),
                Ok(None) => {}
                Err(note) => found.notes.push(note),
            }
        }
        let text = |path: &Path| -> Result<Option<String>> {
            let bytes = view.read(path, MAX_FILE).map_err(in_image(given))?;
            Ok(bytes.map(|b| String::from_utf8_lossy(&b).into_owned()))
        };
        if let Some(text) = text(Path::new("/ch/environment"))? {
            found.charliecloud(&text);
        }
        let dir = Path::new("/.singularity.d/env");
        if let Some(entry) = view.find(dir).map_err(in_image(given))?
            && entry.kind == FileKind::Directory
        {
            if view.find(Path::new(RUNSCRIPT)).map_err(in_image(given))?.is_some() {
                found.entry = vec![RUNSCRIPT.to_owned()];
            }
            let (mut names, more) = entry.list(MAX_SCRIPTS).map_err(in_image(given))?;
            if more {
                found.notes.push(format!("{}: only {MAX_SCRIPTS} files are read", dir.display()));
            }
            names.sort();
            for name in names.iter().filter(|n| n.as_encoded_bytes().ends_with(b".sh")) {
                let path = dir.join(name);
                if let Some(text) = text(&path)? {
                    found.shell(&path, &text);
                }
            }
        }
        Ok(found)
    }

    fn set(&mut self, name: &str, value: String) {
        self.env.retain(|(n, _)| n != name);
        if self.env.len() == MAX_VARIABLES || name.len() + value.len() > MAX_VALUE {
            let note =
                format!("{name:.64}: more than {MAX_VARIABLES} variables, or {MAX_VALUE} bytes; left out");
            if self.notes.len() < 64 {
                self.notes.push(note);
            }
            return;
        }
        self.env.push((name.to_owned(), value));
    }

    fn get(&self, name: &str) -> &str {
        self.env.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }

    /// What a script sees: a PATH is always there.
    fn value(&self, name: &str) -> &str {
        match self.get(name) {
            "" if name == "PATH" => DEFAULT_PATH,
            value => value,
        }
    }

    /// What an OCI image's configuration says.
    fn runtime(&mut self, config: &Runtime) {
        self.pairs(&config.env);
        self.workdir = Some(PathBuf::from(&config.workdir)).filter(|w| w.is_absolute());
        self.entry = [&config.entrypoint[..], &config.cmd].concat();
    }

    fn pairs(&mut self, env: &[String]) {
        for (name, value) in env.iter().filter_map(|pair| pair.split_once('=')) {
            self.set(name, value.to_owned());
        }
    }

    /// `NAME=VALUE` lines, single quotes around the value removed (ch-run(1), --set-env).
    fn charliecloud(&mut self, text: &str) {
        for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
            match line.split_once('=') {
                Some((name, value)) if is_name(name) => {
                    let value = value.strip_prefix('\'').and_then(|v| v.strip_suffix('\'')).unwrap_or(value);
                    self.set(name, value.to_owned());
                }
                _ => self.notes.push(format!("/ch/environment: not understood: {line}")),
            }
        }
    }

    /// `export NAME=VALUE`, `NAME=VALUE`, `export NAME` and `unset NAME`, with quotes, `$NAME`, `${NAME}` and
    /// `${NAME:-default}`; of `if`, `elif` and `else` the branch that is taken, where words are compared or asked whether
    /// they are empty. What lies in loops, functions and other conditions is passed over.
    fn shell(&mut self, path: &Path, text: &str) {
        let mut blocks: Vec<Block> = Vec::new();
        let mut joined: Vec<String> = Vec::new();
        let mut goes_on = false;
        for line in text.lines() {
            let begun = joined.last_mut().filter(|_| goes_on);
            // Comments do not go on.
            let is_comment = begun.is_none() && line.trim_start().starts_with('#');
            let (part, more) = match line.strip_suffix('\\') {
                Some(part) if !is_comment => (part, true),
                _ => (line, false),
            };
            match begun {
                Some(begun) => begun.push_str(part),
                None => joined.push(part.to_owned()),
            }
            goes_on = more;
        }
        for line in joined.iter().map(|l| l.trim()).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let word = line.split(|c: char| c.is_whitespace() || c == ';').next().unwrap_or_default();
            let is_live = blocks.last().is_none_or(|b| b.is_live);
            let code = line.split(" #").next().unwrap_or_default();
            let last = code.split([' ', '\t', ';']).rfind(|w| !w.is_empty()).unwrap_or_default();
            let rest = line[word.len()..].trim();
            let is_understood = match word {
                "then" | "do" => rest.is_empty() || !is_live || self.assignment(rest),
                "if" if last == "fi" => !is_live,
                "if" => {
                    let holds = if is_live { self.holds(&line[2..]) } else { Some(false) };
                    let may_follow = is_live && holds == Some(false);
                    blocks.push(Block { end: "fi", is_live: holds == Some(true), may_follow });
                    holds.is_some()
                }
                "elif" | "else" if blocks.last().is_some_and(|b| b.end == "fi") => {
                    let asked = blocks.pop().is_some_and(|b| b.may_follow);
                    let holds = match (asked, word) {
                        (false, _) => Some(false),
                        (true, "else") => Some(true),
                        (true, _) => self.holds(&line[4..]),
                    };
                    let may_follow = asked && holds == Some(false);
                    blocks.push(Block { end: "fi", is_live: holds == Some(true), may_follow });
                    let is_empty = word != "else" || rest.is_empty() || holds != Some(true);
                    holds.is_some() && (is_empty || self.assignment(rest))
                }
                end if blocks.last().is_some_and(|b| b.end == end) => blocks.pop().is_some(),
                _ => {
                    let end = match word {
                        "for" | "while" | "until" => Some("done"),
                        "case" => Some("esac"),
                        _ if last.ends_with('{') || word.ends_with("()") => Some("}"),
                        _ => None,
                    };
                    match end {
                        Some(end) if last != end => {
                            blocks.push(Block { end, is_live: false, may_follow: false });
                            !is_live
                        }
                        Some(_) => !is_live,
                        None => !is_live || self.assignment(line),
                    }
                }
            };
            if !is_understood {
                self.notes.push(format!("{}: not understood: {line}", path.display()));
            }
            if blocks.len() > MAX_BLOCKS {
                self.notes.push(format!("{}: blocks in more than {MAX_BLOCKS} blocks", path.display()));
                return;
            }
        }
        if let Some(Block { end, .. }) = blocks.last() {
            self.notes
                .push(format!("{}: a block without its {end}: what it holds is left out", path.display()));
        }
    }

    /// Takes a line that is no block's; whether it was understood.
    fn assignment(&mut self, line: &str) -> bool {
        let names = |rest: &str| rest.trim_end_matches(';').split_whitespace().all(is_name);
        if let Some(rest) = line.strip_prefix("unset ") {
            if names(rest) {
                let gone: Vec<&str> = rest.trim_end_matches(';').split_whitespace().collect();
                self.env.retain(|(name, _)| !gone.contains(&name.as_str()));
            }
            return names(rest);
        }
        let rest = line.strip_prefix("export ").unwrap_or(line).trim();
        if names(rest) && (rest != line || is_name(rest)) {
            return true;
        }
        let parsed = rest
            .split_once('=')
            .filter(|(name, _)| is_name(name))
            .and_then(|(name, word)| Some((name, self.word(word, 0)?)));
        parsed.map(|(name, value)| self.set(name, value)).is_some()
    }

    /// Whether the condition of an `if` holds; `None` if it asks for anything else than words.
    fn holds(&self, condition: &str) -> Option<bool> {
        let condition = condition.trim();
        let condition = condition.strip_suffix("then").unwrap_or(condition).trim_end();
        let condition = condition.strip_suffix(';').unwrap_or(condition).trim();
        let within = |begin: &str, end: &str| condition.strip_prefix(begin)?.strip_suffix(end);
        let asked = within("[ ", " ]").or(within("[[ ", " ]]")).or(condition.strip_prefix("test "))?.trim();
        let is_split = !condition.starts_with("[[");
        if let Some(word) = asked.strip_prefix("-n ") {
            return Some(!self.operand(word.trim(), is_split)?.is_empty());
        }
        if let Some(word) = asked.strip_prefix("-z ") {
            return Some(self.operand(word.trim(), is_split)?.is_empty());
        }
        let (a, b, is_equal) = match asked.split_once(" != ") {
            Some((a, b)) => (a, b, false),
            None => {
                asked.split_once(" = ").or_else(|| asked.split_once(" == ")).map(|(a, b)| (a, b, true))?
            }
        };
        Some((self.operand(a.trim(), is_split)? == self.operand(b.trim(), is_split)?) == is_equal)
    }

    /// A word of a condition; `None` where the shell would make none or several of it, or a pattern.
    fn operand(&self, word: &str, is_split: bool) -> Option<String> {
        let value = self.word(word, 0)?;
        let is_quoted =
            word.len() > 1 && ['"', '\''].iter().any(|q| word.starts_with(*q) && word.ends_with(*q));
        let is_other = is_split && (value.is_empty() || value.contains(char::is_whitespace));
        (is_quoted || !(is_other || value.contains(['*', '?', '[']))).then_some(value)
    }

    /// One shell word, expanded; `None` when it holds anything else than quotes and variables.
    fn word(&self, word: &str, depth: usize) -> Option<String> {
        if depth > 8 {
            return None;
        }
        let mut out = String::new();
        let mut chars = word.char_indices().peekable();
        let mut double = false;
        while let Some((at, c)) = chars.next() {
            if out.len() > MAX_VALUE {
                return None;
            }
            match c {
                '"' => double = !double,
                '\'' if !double => {
                    let end = word[at + 1..].find('\'')? + at + 1;
                    out.push_str(&word[at + 1..end]);
                    while chars.next_if(|(i, _)| *i <= end).is_some() {}
                }
                '\\' => out.push(chars.next()?.1),
                '$' => {
                    let tail = &word[at + 1..];
                    let (value, used) = self.variable(tail, depth)?;
                    out.push_str(&value);
                    while chars.next_if(|(i, _)| *i < at + 1 + used).is_some() {}
                }
                ';' if !double => return word[at + 1..].trim().is_empty().then_some(out),
                '#' | ' ' | '\t' if !double => {
                    return word[at..]
                        .trim_start()
                        .strip_prefix('#')
                        .map_or_else(|| word[at..].trim().is_empty(), |_| true)
                        .then_some(out);
                }
                '`' | '&' | '|' | '<' | '>' | '(' | ')' => return None,
                c => out.push(c),
            }
        }
        (!double).then_some(out)
    }

    /// The value of the variable reference that follows a `$`, and its length.
    fn variable(&self, tail: &str, depth: usize) -> Option<(String, usize)> {
        if let Some(braced) = tail.strip_prefix('{') {
            let mut level = 1;
            let end = braced.char_indices().find_map(|(i, c)| {
                match c {
                    '{' => level += 1,
                    '}' => level -= 1,
                    _ => {}
                }
                (level == 0).then_some(i)
            })?;
            let inner = &braced[..end];
            let (name, default) = match inner.split_once(":-").or_else(|| inner.split_once('-')) {
                Some((name, default)) => (name, self.word(default, depth + 1)?),
                None => (inner, String::new()),
            };
            if !is_name(name) {
                return None;
            }
            let value = self.value(name);
            return Some((if value.is_empty() { default } else { value.to_owned() }, end + 2));
        }
        let len = tail.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(tail.len());
        is_name(&tail[..len]).then(|| (self.value(&tail[..len]).to_owned(), len))
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(text: &str) -> ImageEnvironment {
        let mut e = ImageEnvironment::default();
        e.set("PATH", "/bin".into());
        e.shell(Path::new("/env.sh"), text);
        e
    }

    #[test]
    fn shell_assignments_as_apptainer_writes_them() {
        let e = shell(concat!(
            "#!/bin/sh\n# comment\nexport PATH=\"/opt/bin:$PATH\"\n",
            "export A=\"${A:-\"one\"}\"\nB='two $PATH'; \nexport B\nC=${PATH}/x # why\nD=a\\ b\n",
        ));
        let get = |n| e.get(n).to_owned();
        assert_eq!((get("PATH"), get("A")), ("/opt/bin:/bin".into(), "one".into()));
        assert_eq!(
            (get("B"), get("C"), get("D")),
            ("two $PATH".into(), "/opt/bin:/bin/x".into(), "a b".into())
        );
        assert!(e.notes.is_empty(), "{:?}", e.notes);
    }

    #[test]
    fn of_conditions_the_branch_that_is_taken() {
        let e = shell(concat!(
            "if [ -n \"${SET_BY_NOBODY:-}\" ]; then\n\tPATH=\"${SET_BY_NOBODY}\"\nfi\n",
            "if test -z \"$A\"; then\n  A=1\n  if [ \"$A\" = 2 ]; then\n B=no\n",
            " elif [ $A = 1 ]\n then\n B=yes\n else\n B=no\n fi\nelse\n A=no\nfi\n",
            "C=1\nunset C \\\n  D\nexport A B\n",
            "if [ -f /etc/profile ]; then\n A=no\n if [ -z \"\" ]; then\n A=no\n fi\nelse\n A=no\nfi\n",
            "for x in a b; do\n A=no\ndone\ncase $A in\n 1) A=no;;\nesac\nf() {\n A=no\n}\n",
            "if [ -z \"$Z\" ]; then A=no; fi\nZ=end\n",
        ));
        let get = |n| e.get(n).to_owned();
        assert_eq!(
            (get("PATH"), get("A"), get("B"), get("C"), get("Z")),
            ("/bin".into(), "1".into(), "yes".into(), String::new(), "end".into())
        );
        let said: Vec<&str> = e.notes.iter().map(|n| n.rsplit(": ").next().unwrap()).collect();
        assert_eq!(
            said,
            [
                "if [ -f /etc/profile ]; then",
                "for x in a b; do",
                "case $A in",
                "f() {",
                "if [ -z \"$Z\" ]; then A=no; fi"
            ]
        );
        let e = shell(concat!(
            "# not this \\\nexport A=\"/a:\\\n/b\"\n",
            "if [ -z \"$B\" ]\nthen B=1\nelse B=no\nfi\nif [ -n \"$C\" ]; then C=no;fi # why\n",
            "if [ -n \"\" ]\nthen\n D=no\nelse D=2\nfi\n",
            "if [ -n $NOBODY ]; then E=no\nelse E=no\nfi\nif [[ \"$A\" == */b* ]]; then\n E=no\nfi\n",
            "if [ -n \"$A\" ]; then\n",
        ));
        let get = |n| e.get(n).to_owned();
        assert_eq!(
            (get("A"), get("B"), get("D"), get("E")),
            ("/a:/b".into(), "1".into(), "2".into(), String::new())
        );
        assert_eq!(e.notes.len(), 4, "{:?}", e.notes);
        assert!(e.notes[3].contains("a block without its fi"), "{:?}", e.notes);
        assert!(shell(&"if [ -z x ]\n".repeat(1000)).notes[0].contains("blocks in more than 64"));
    }

    #[test]
    fn values_and_variables_are_bounded() {
        let e = shell(&format!("A=xxxxxxxx\n{}", "A=$A$A\n".repeat(48)));
        assert!(e.get("A").len() <= MAX_VALUE);
        let e = shell(&(0..5000).map(|i| format!("V{i}=1\n")).collect::<String>());
        assert_eq!(e.env.len(), MAX_VARIABLES);
        assert!(e.notes[0].contains("left out"), "{:?}", e.notes);
    }

    #[test]
    fn a_script_adds_to_the_usual_path() {
        let mut e = ImageEnvironment::default();
        e.shell(Path::new("/env.sh"), "export PATH=\"/opt/bin:$PATH\"");
        assert_eq!(e.get("PATH"), format!("/opt/bin:{DEFAULT_PATH}"));
    }

    #[test]
    fn what_is_not_understood_is_said_and_never_run() {
        let e = shell("export X=$(id)\nY=`id`\nZ=\"open\n9=1\nif true; then\nA=1\nfi\n");
        assert_eq!(e.env.len(), 1, "{:?}", e.env);
        assert_eq!(e.notes.len(), 5);
        assert_eq!(e.notes[0], "/env.sh: not understood: export X=$(id)");
    }

    #[test]
    fn charliecloud_lines() {
        let mut e = ImageEnvironment::default();
        e.charliecloud("A=1\nB='x y'\nnonsense\n");
        assert_eq!(e.env, [("A".into(), "1".into()), ("B".into(), "x y".into())]);
        assert_eq!(e.notes, ["/ch/environment: not understood: nonsense"]);
    }
}
