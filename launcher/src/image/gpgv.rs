//! gpgv, which says whether a clear-signed message is right, and what was signed: the only program that we ask, in a process
//! of its own, with no environment and no home, bounded in time and in what it may answer. (An OpenPGP library would bring
//! dozens of crates; gpgv is what apt trusts.)

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Code, Error, Result};

/// A key ring may lie on a slow file system.
const LIMIT: Duration = Duration::from_secs(60);
/// What was signed, and what is said of that: a message has at most a MiB.
const MAX_ANSWER: usize = 2 << 20;

/// What it says of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is right.
    Right {
        /// Of the primary key, in hexadecimal digits.
        fingerprint: String,
        /// What was signed.
        text: Vec<u8>,
    },
    /// It is by a key that is in no key ring: its fingerprint, or its number.
    UnknownKey(String),
    /// It was right once: another, made since, does.
    Outdated {
        /// The refusal, where there is no other.
        code: Code,
        /// Its reason.
        why: String,
        /// What to do.
        cure: String,
    },
}

/// Finds it: on PATH, or where it usually is, for a site's PATH may lack these in batch jobs.
pub fn find() -> Result<PathBuf> {
    let usual = ["/usr/bin", "/usr/local/bin", "/bin"].map(|dir| Path::new(dir).join("gpgv"));
    let is_program =
        |path: &PathBuf| path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok();
    // Where gpgv is of GnuPG 1, as in Enterprise Linux 7, gpgv2 is there too.
    let on_path = ["gpgv2", "gpgv"].iter().find_map(|name| which::which(name).ok());
    on_path.or_else(|| usual.into_iter().find(is_program)).ok_or_else(|| {
        Error::new(
            Code::GpgvMissing,
            "only gpgv can verify signatures, and it is neither on PATH nor in /usr/bin",
            "install it (package gpgv, or gnupg2), on every node that runs images",
        )
    })
}

/// Asks about one message. `what`: the signature, for people.
pub fn verify(program: &Path, rings: &[PathBuf], message: &[u8], what: &str) -> Result<Answer> {
    let failed = |e: std::io::Error| failure(what, &format!("running {}: {e}", program.display()));
    let (status, theirs) = nix::unistd::pipe().map_err(|e| failed(e.into()))?;
    fcntl(&status, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|e| failed(e.into()))?;
    let number = theirs.as_raw_fd().to_string();
    let mut command = Command::new(program);
    // Below a file there is no home: no key ring, no configuration.
    command.args(["--homedir", "/dev/null", "--status-fd", &number, "--output", "-"]);
    for ring in rings {
        command.arg("--keyring").arg(ring);
    }
    command.arg("--").arg("-").env_clear().env("LC_ALL", "C").current_dir("/");
    command.stdin(held(message).map_err(failed)?).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    drop(theirs);
    let answers = answers(&mut child, status);
    if answers.is_err() {
        let _ = child.kill();
    }
    // Whoever started us may want to hear of no children: then there is no status.
    let ended_well = child.wait().map_or(true, |status| status.success());
    let [text, errors, status] = answers.map_err(failed)?;
    let said = Said::of(&String::from_utf8_lossy(&status));
    let answer = said.judge(what, text)?;
    match (answer, ended_well) {
        (Some(Answer::Right { .. }), false) | (None, _) => Err(failure(what, &last_words(&errors))),
        (Some(answer), _) => Ok(answer),
    }
}

fn failure(what: &str, why: &str) -> Error {
    Error::new(
        Code::GpgvFailed,
        format!("gpgv does not say whether {what} is right: {why}"),
        "see what it says; gpgv must be of GnuPG 2.2 or newer",
    )
}

/// A message as a file that it can read.
fn held(message: &[u8]) -> std::io::Result<File> {
    let memory = nix::sys::memfd::memfd_create(c"signature", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(message)?;
    file.rewind()?;
    Ok(file)
}

/// What it writes to standard output, standard error and its descriptor for status, until it has closed them all.
fn answers(child: &mut Child, status: OwnedFd) -> std::io::Result<[Vec<u8>; 3]> {
    let missing = || std::io::Error::other("no pipe");
    let out = OwnedFd::from(child.stdout.take().ok_or_else(missing)?);
    let errors = OwnedFd::from(child.stderr.take().ok_or_else(missing)?);
    let mut open = [out, errors, status].map(|fd| Some(File::from(fd)));
    let mut read: [Vec<u8>; 3] = Default::default();
    let end = Instant::now() + LIMIT;
    while open.iter().any(Option::is_some) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::Error::other(format!("it took longer than {} s", LIMIT.as_secs())));
        }
        let ready: Vec<usize> = {
            let waiting: Vec<(usize, &File)> =
                open.iter().enumerate().filter_map(|(i, f)| Some((i, f.as_ref()?))).collect();
            let mut polled: Vec<PollFd> =
                waiting.iter().map(|(_, file)| PollFd::new(file.as_fd(), PollFlags::POLLIN)).collect();
            match poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            let is_ready = |p: &PollFd| p.revents().is_some_and(|events| !events.is_empty());
            waiting.iter().zip(&polled).filter(|(_, p)| is_ready(p)).map(|((i, _), _)| *i).collect()
        };
        for i in ready {
            let mut buffer = [0; 1 << 16];
            let n = match &mut open[i] {
                Some(file) => file.read(&mut buffer)?,
                None => 0,
            };
            if n == 0 {
                open[i] = None;
            }
            read[i].extend_from_slice(&buffer[..n]);
            if read[i].len() > MAX_ANSWER {
                return Err(std::io::Error::other("it says more than any signature holds"));
            }
        }
    }
    Ok(read)
}

fn last_words(errors: &[u8]) -> String {
    let text = String::from_utf8_lossy(errors);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    match &lines[lines.len().saturating_sub(2)..] {
        [] => "it says nothing".to_owned(),
        last => last.join("; "),
    }
}

/// Its words, for programs (doc/DETAILS of GnuPG).
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    /// What it makes of each signature of the message, and the key's number.
    verdicts: Vec<(String, String)>,
    /// Of a signature that is right, as numbers: what VALIDSIG says.
    valid: Option<Vec<String>>,
    /// The fingerprint of a key that it does not have.
    unknown: Option<String>,
    texts: usize,
}

impl Said {
    fn of(status: &str) -> Said {
        let mut said = Said::default();
        for line in status.lines() {
            let mut words = line.strip_prefix("[GNUPG:] ").unwrap_or_default().split(' ').map(str::to_owned);
            let (word, rest) = (words.next().unwrap_or_default(), words.collect::<Vec<String>>());
            let first = || rest.first().cloned().unwrap_or_default();
            match word.as_str() {
                "GOODSIG" | "BADSIG" | "EXPSIG" | "EXPKEYSIG" | "REVKEYSIG" | "ERRSIG" => {
                    said.verdicts.push((word, first()));
                    // Why it cannot be checked: 9 is the key.
                    let is_missing = rest.get(5).is_some_and(|why| why == "9");
                    if let Some(fingerprint) =
                        rest.get(6).filter(|_| is_missing).filter(|f| is_hexadecimal(f) && f.len() >= 40)
                    {
                        said.unknown = Some(fingerprint.clone());
                    }
                }
                "NO_PUBKEY" => said.unknown = said.unknown.take().or_else(|| Some(first())),
                "VALIDSIG" => said.valid = Some(rest),
                "PLAINTEXT" => said.texts += 1,
                _ => {}
            }
        }
        said
    }

    /// `None`: it did not get so far.
    fn judge(self, what: &str, text: Vec<u8>) -> Result<Option<Answer>> {
        let invalid = |why: &str, cure: &str| Err(Error::new(Code::SignatureInvalid, why, cure));
        let key = |why: &str, cure: &str| Err(Error::new(Code::SignatureKey, why, cure));
        let outdated = |code, why: String, cure: String| Ok(Some(Answer::Outdated { code, why, cure }));
        let (verdict, number) = match &self.verdicts[..] {
            [] => return Ok(None),
            [(verdict, number)] if self.texts == 1 && is_hexadecimal(number) => (verdict.as_str(), number),
            _ => {
                return invalid(
                    &format!("{what} holds more than one"),
                    "sign it anew: `apptainer sign FILE`",
                );
            }
        };
        match verdict {
            "GOODSIG" => {}
            "BADSIG" => {
                return invalid(
                    &format!("{what} is wrong: the key {number} did not sign that"),
                    "do not run it: somebody changed it, or it was damaged on its way; get it anew from who signed it",
                );
            }
            "EXPSIG" => {
                return outdated(
                    Code::SignatureKey,
                    format!("{what}, by the key {number}, has expired"),
                    "have it signed anew".to_owned(),
                );
            }
            "EXPKEYSIG" => {
                return outdated(
                    Code::SignatureKey,
                    format!("the key {number}, which made {what}, has expired"),
                    format!(
                        "if its owner prolonged it, fetch it again (`apptainer key pull {number}`); else have the image \
                         signed anew"
                    ),
                );
            }
            "REVKEYSIG" => {
                return key(
                    &format!("the key {number}, which made {what}, was revoked by its owner"),
                    "do not trust it; ask who signed the image for a signature by another key",
                );
            }
            _ => return Ok(self.unknown.map(Answer::UnknownKey)),
        }
        let Some(valid) = self.valid else { return Ok(None) };
        let field = |at: usize| valid.get(at).map(String::as_str).unwrap_or_default();
        // SHA-224 to SHA-512 (RFC 4880, 9.4), as Apptainer has it: collisions of the others can be made.
        if !["8", "9", "10", "11"].contains(&field(7)) {
            return outdated(
                Code::SignatureInvalid,
                format!("{what} is made with a digest that is no longer safe (number {})", field(7)),
                "sign it anew: `apptainer sign FILE`".to_owned(),
            );
        }
        // Of a document, binary or text, not of a key.
        let is_of_document = ["00", "01"].contains(&field(8));
        let fingerprint = valid.get(9).filter(|f| is_hexadecimal(f) && f.len() >= 40);
        Ok(fingerprint.filter(|_| is_of_document).map(|f| Answer::Right { fingerprint: f.clone(), text }))
    }
}

fn is_hexadecimal(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINGERPRINT: &str = "838F52EC616BE43B8A8632A676C4C49EF2339AA5";

    fn judged(lines: &str) -> Result<Option<Answer>> {
        let status: String = format!("PLAINTEXT 74 0 \nNEWSIG\n{lines}")
            .lines()
            .map(|line| {
                format!("[GNUPG:] {}\n", line.replace("FPR", FINGERPRINT).replace("%K", &FINGERPRINT[24..]))
            })
            .collect();
        Said::of(&status).judge("the signature", b"text".to_vec())
    }

    #[test]
    fn what_gpgv_says_is_understood() {
        let right = Answer::Right { fingerprint: FINGERPRINT.to_owned(), text: b"text".to_vec() };
        let valid = "VALIDSIG FPR 2026-11-28 1795861846 0 4 0 22 8 01 FPR";
        assert_eq!(judged(&format!("GOODSIG %K A Tester <a@x>\n{valid}")).unwrap(), Some(right));
        let unknown = "ERRSIG %K 22 8 01 1795861846 9 FPR\nNO_PUBKEY %K";
        assert_eq!(judged(unknown).unwrap(), Some(Answer::UnknownKey(FINGERPRINT.to_owned())));
        let old = "ERRSIG %K 22 8 01 1795861846 9\nNO_PUBKEY %K";
        assert_eq!(judged(old).unwrap(), Some(Answer::UnknownKey(FINGERPRINT[24..].to_owned())));
        for nothing in [
            "",
            "ERRSIG %K 1 1 01 1795861846 5 FPR",
            "NODATA 2",
            "GOODSIG %K A",
            &format!("GOODSIG %K A\n{}", valid.replace("01 FPR", "13 FPR")),
        ] {
            assert_eq!(judged(nothing).unwrap(), None, "{nothing}");
        }
    }

    #[test]
    fn nothing_but_a_good_signature_is_one() {
        let valid = "VALIDSIG FPR 2026-11-28 1795861846 0 4 0 22 8 01 FPR";
        for (lines, code, why) in [
            ("BADSIG %K A".to_owned(), Code::SignatureInvalid, "is wrong: the key 76C4C49EF2339AA5"),
            (
                format!("EXPKEYSIG %K A\n{valid}"),
                Code::SignatureKey,
                "the key 76C4C49EF2339AA5, which made the signature, has expired",
            ),
            (
                format!("EXPSIG %K A\n{valid}"),
                Code::SignatureKey,
                "the signature, by the key 76C4C49EF2339AA5, has expired",
            ),
            (format!("REVKEYSIG %K A\n{valid}"), Code::SignatureKey, "was revoked"),
            (
                format!("GOODSIG %K A\n{}", valid.replace(" 8 ", " 2 ")),
                Code::SignatureInvalid,
                "no longer safe (number 2)",
            ),
            (format!("GOODSIG %K A\n{valid}\nBADSIG %K A"), Code::SignatureInvalid, "more than one"),
            (format!("GOODSIG %K A\n{valid}\nPLAINTEXT 74 0 "), Code::SignatureInvalid, "more than one"),
        ] {
            let (is, what) = match judged(&lines) {
                Err(e) => (e.code, e.what),
                Ok(Some(Answer::Outdated { code, why, .. })) => (code, why),
                Ok(other) => panic!("{other:?}"),
            };
            assert!(is == code && what.contains(why), "{what} instead of {why}");
        }
    }

    #[test]
    fn its_last_words_are_passed_on() {
        assert_eq!(last_words(b""), "it says nothing");
        assert_eq!(last_words(b"a\nb\n\nc\n"), "b; c");
    }
}
