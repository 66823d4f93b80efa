//! Notes of the sandbox about itself, in memory, gone with its last rank: what the first rank found out
//! the others need not find out again.

use std::fs::File;
use std::path::Path;

use crate::job::siblings::{MARK_DIRECTORY, MARK_LINK};

/// Notes that a program may run here; a sandbox works without.
pub fn judged(digest: &str) {
    let _ = File::create_new(Path::new(MARK_DIRECTORY).join(digest));
}

/// Whether a program was judged before, by another rank than the builder.
pub fn is_judged(digest: &str) -> bool {
    nix::unistd::access(&Path::new(MARK_DIRECTORY).join(digest), nix::unistd::AccessFlags::F_OK).is_ok()
}

/// What the builder wrote into the mark itself: one call tells it all.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Builders {
    /// The digest of its program, which was judged.
    pub program: String,
    /// Whether there is a note on the image's environment.
    pub environment: bool,
}

impl Builders {
    /// As it stands in the mark, behind the sandbox's name.
    pub fn text(&self) -> String {
        format!("{}.{}", self.program, if self.environment { "environment" } else { "" })
    }

    /// Of the sandbox that this process is in; nothing is known where it has no mark.
    pub fn read() -> Option<Builders> {
        let mark = std::fs::read_link(Path::new(MARK_DIRECTORY).join(MARK_LINK)).ok()?;
        Builders::of_mark(mark.to_str()?)
    }

    fn of_mark(mark: &str) -> Option<Builders> {
        let [_step, _sandbox, program, environment] = mark.split('.').collect::<Vec<_>>().try_into().ok()?;
        Some(Builders { program: program.to_owned(), environment: !environment.is_empty() })
    }
}

/// Reads a note.
pub fn read(name: &str) -> Option<Vec<u8>> {
    let meta = std::fs::metadata(Path::new(MARK_DIRECTORY).join(name)).ok()?;
    if meta.len() > 1 << 20 {
        return None;
    }
    std::fs::read(Path::new(MARK_DIRECTORY).join(name)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_tells_what_the_builder_knew() {
        for environment in [false, true] {
            let builders = Builders { program: "d1".into(), environment };
            assert_eq!(Builders::of_mark(&format!("s.b.{}", builders.text())), Some(builders));
        }
        assert_eq!(Builders::of_mark("s.b"), None);
    }
}
