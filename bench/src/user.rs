//! Being an ordinary user: the bench re-executes itself once, so that no sample needs a wrapper.

use crate::contender::find_program;
use crate::error::Error;
use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{fchown, lchown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// A line of the user database, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// Returns once this process runs as `name`; as root it gets there by starting over as that user.
/// `json` and `out`, a file and a directory, are made for them first if they are not there, for root may have named a
/// place where they cannot create one. (The file is rewritten in place then.)
pub fn become_user(name: &str, json: Option<&Path>, out: Option<&Path>) -> Result<(), Error> {
    let account = account(name)?;
    let uid = rustix::process::geteuid();
    if uid.as_raw() == account.uid {
        return Ok(());
    }
    if !uid.is_root() {
        return Err(Error::new(
            format!("run as {name}"),
            format!("only root may change to another user, and this is uid {}", uid.as_raw()),
            "leave --user out, or start hpc-bench as root",
        ));
    }
    let unusable = |path: &Path, e: &dyn std::fmt::Display| {
        Error::new(format!("hand {} to {name}", path.display()), e, "give --json or --out another path")
    };
    // What is there already stays whose it is: root must not give away what a link, or a typing error, names.
    if let Some(path) = json {
        match File::options().create_new(true).write(true).open(path) {
            Ok(file) => {
                fchown(&file, Some(account.uid), Some(account.gid)).map_err(|e| unusable(path, &e))?;
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(unusable(path, &e)),
        }
    }
    if let Some(path) = out {
        if let Some(above) = path.parent() {
            fs::create_dir_all(above).map_err(|e| unusable(path, &e))?;
        }
        match fs::create_dir(path) {
            Ok(()) => lchown(path, Some(account.uid), Some(account.gid)).map_err(|e| unusable(path, &e))?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(unusable(path, &e)),
        }
    }
    let failed = |why: String| {
        Error::new(
            format!("start over as {name}"),
            why,
            "install util-linux, and keep hpc-bench where that user may run it",
        )
    };
    // Not runuser: it would stay in between, and kill us two seconds after a signal that ends a measurement.
    let setpriv = find_program("setpriv", "apt-get install util-linux").map_err(failed)?;
    let this = env::current_exe().map_err(|e| failed(e.to_string()))?;
    let (uid, gid) = (account.uid, account.gid);
    // The environment is kept: root's home and name must not leak into the samples.
    let e: io::Error = Command::new(setpriv)
        .args([format!("--reuid={uid}"), format!("--regid={gid}")])
        .args(["--init-groups", "--"])
        .arg(this)
        .args(env::args_os().skip(1))
        .env("HOME", &account.home)
        .env("USER", name)
        .env("LOGNAME", name)
        .env_remove("XDG_RUNTIME_DIR")
        .exec();
    Err(failed(e.to_string()))
}

/// The name of the user who runs this process.
pub fn name() -> Result<String, Error> {
    Ok(account(&rustix::process::geteuid().as_raw().to_string())?.name)
}

/// Through getent, which asks LDAP and the like too; a static program cannot load NSS modules itself.
fn account(user: &str) -> Result<Account, Error> {
    let failed = |why: String| {
        Error::new(format!("look the user {user} up"), why, "see getent passwd for the names there are")
    };
    let getent = find_program("getent", "apt-get install libc-bin").map_err(failed)?;
    let output = Command::new(getent).args(["passwd", user]).output().map_err(|e| failed(e.to_string()))?;
    let line = String::from_utf8_lossy(&output.stdout);
    parse(line.trim_end()).ok_or_else(|| failed(format!("getent passwd {user} has no such user")))
}

fn parse(line: &str) -> Option<Account> {
    let fields: Vec<&str> = line.split(':').collect();
    let &[name, _, uid, gid, _, home, _] = fields.as_slice() else { return None };
    Some(Account { name: name.into(), uid: uid.parse().ok()?, gid: gid.parse().ok()?, home: home.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passwd_line() {
        let account = parse("ann:x:1000:1001:Ann,,,:/home/ann:/bin/sh").unwrap();
        assert_eq!(account, Account { name: "ann".into(), uid: 1000, gid: 1001, home: "/home/ann".into() });
        assert_eq!(parse(""), None);
        assert_eq!(parse("ann:x:many:1001::/home/ann:/bin/sh"), None);
    }

    #[test]
    fn an_unknown_user_is_named() {
        let error = become_user("no-such-user", None, None).unwrap_err().to_string();
        assert!(error.contains("look the user no-such-user up"), "{error}");
    }
}
