//! Debian packages of any release, resolved and fetched by apt with a state of its own: nothing of
//! the host's is read but its mirror, its proxies and its keys, and nothing of it is changed.

use crate::recipe::Suite;
use crate::run;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Package lists older than this are fetched again.
const LISTS_KEEP: Duration = Duration::from_secs(24 * 3600);

/// apt's world for one release, below a directory of the cache.
pub struct Apt {
    dir: PathBuf,
    log: PathBuf,
}

impl Apt {
    /// Prepares the directory `dir` and, if they are missing or old, fetches the package lists.
    pub fn open(dir: PathBuf, suite: &Suite, log: PathBuf) -> Result<Self> {
        for sub in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(dir.join(sub))
                .with_context(|| format!("cannot create {}/{sub}", dir.display()))?;
        }
        // No package is installed, not even an essential one: all that is needed is resolved.
        fs::write(dir.join("status"), "")?;
        let line = format!("deb [signed-by={}] {} {} main\n", keyring(suite)?, mirror()?, suite.name);
        let sources = dir.join("sources.list");
        let same_mirror = fs::read_to_string(&sources).is_ok_and(|old| old == line);
        fs::write(&sources, line)?;

        let apt = Self { dir, log };
        let stamp = apt.dir.join("updated");
        let age = fs::metadata(&stamp).and_then(|meta| meta.modified()).ok();
        let age = age.and_then(|time| SystemTime::now().duration_since(time).ok());
        if !same_mirror || age.is_none_or(|age| age > LISTS_KEEP) {
            // Without this an update that could not reach the mirror would pass as a success.
            run::logged(apt.get().args(["-o", "APT::Update::Error-Mode=any", "update"]), &apt.log)?;
            fs::write(stamp, "")?;
        }
        Ok(apt)
    }

    /// Fetches `packages` with all that they depend on; returns the package files.
    pub fn fetch(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        run::logged(self.get().args(["--download-only", "install"]).args(packages), &self.log)?;
        let plan = run::output(self.get().args(["--simulate", "install"]).args(packages))?;
        let mut files = Vec::new();
        for line in plan.lines().filter(|line| line.starts_with("Inst ")) {
            let name = file_name(line).with_context(|| format!("apt-get said: {line}"))?;
            let path = self.dir.join("archives").join(name);
            if !path.exists() {
                bail!("apt-get did not leave {} (log: {})", path.display(), self.log.display());
            }
            files.push(path);
        }
        if files.is_empty() {
            bail!("apt-get resolved {} to nothing", packages.join(" "));
        }
        Ok(files)
    }

    fn get(&self) -> Command {
        let mut command = Command::new("apt-get");
        let dir = self.dir.display();
        let options = [
            format!("Dir::State={dir}"),
            format!("Dir::State::lists={dir}/lists"),
            format!("Dir::State::status={dir}/status"),
            format!("Dir::Cache={dir}"),
            format!("Dir::Cache::archives={dir}/archives"),
            format!("Dir::Etc::sourcelist={dir}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".into(),
            "Dir::Etc::preferences=/dev/null".into(),
            "Dir::Etc::preferencesparts=/dev/null".into(),
            // The host may be told to drop packages after use; ours are the cache.
            "APT::Keep-Downloaded-Packages=true".into(),
            "APT::Install-Recommends=false".into(),
            // A user's cache need not be open to apt's own user.
            "APT::Sandbox::User=root".into(),
            "Acquire::Languages=none".into(),
            // For graphical package managers only, and as large as the package list itself.
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
            "Acquire::Retries=3".into(),
        ];
        for option in options {
            command.args(["-o", &option]);
        }
        command.args(["-q", "-y"]).env("LC_ALL", "C");
        command
    }
}

/// The mirror that the host itself takes Debian from.
fn mirror() -> Result<String> {
    let format = "$(REPO_URI)|$(LABEL)|$(CODENAME)|$(RELEASE)|$(COMPONENT)";
    let targets = run::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]))?;
    choose_mirror(&targets).context(
        "found no Debian mirror in the apt configuration of this machine: \
         test images are made from Debian packages, so this needs a Debian with sources configured",
    )
}

/// From lines "URI|label|code name|release|component" the URI of a main archive of Debian; security
/// and updates suites do not count. apt knows label and code name only after `apt-get update` and
/// leaves the placeholder otherwise: then the URI has to speak for itself.
fn choose_mirror(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let [uri, label, codename, release, "main"] = line.split('|').collect::<Vec<_>>()[..] else {
            return None;
        };
        let unknown = label.is_empty() || label.starts_with("$(");
        let debian = label == "Debian" || unknown && uri.trim_end_matches('/').ends_with("/debian");
        let whole = !release.contains(['-', '/']) && (unknown || !codename.contains('-'));
        (debian && whole).then(|| uri.to_string())
    })
}

/// The file with Debian's archive keys.
fn keyring(suite: &Suite) -> Result<String> {
    let all = "/usr/share/keyrings/debian-archive-keyring";
    let one = format!("/usr/share/keyrings/debian-archive-{}-stable", suite.name);
    let candidates = [format!("{all}.gpg"), format!("{all}.pgp"), format!("{one}.gpg"), format!("{one}.pgp")];
    let found = candidates.into_iter().find(|path| Path::new(path).exists());
    found.context("no Debian keys in /usr/share/keyrings: install debian-archive-keyring")
}

/// From "Inst NAME [OLD] (VERSION ORIGIN [ARCH])" the name that apt gives the package's file.
fn file_name(line: &str) -> Option<String> {
    let name = line.strip_prefix("Inst ")?.split(' ').next()?;
    let name = name.split(':').next()?;
    let (version, rest) = line.split_once('(')?.1.split_once(' ')?;
    let arch = rest.split_once("])")?.0.rsplit_once('[')?.1;
    let quoted = version.replace('_', "%5f").replace(':', "%3a");
    Some(format!("{name}_{quoted}_{arch}.deb"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_file_is_named_as_apt_does() {
        let line = "Inst libattr1 (1:2.5.1-4 Debian:12.11/oldstable [amd64]) [libc6:amd64 ]";
        assert_eq!(file_name(line).unwrap(), "libattr1_1%3a2.5.1-4_amd64.deb");
        let line = "Inst libc6 [2.30-1] (2.36-9+deb12u10 Debian:12.11/oldstable [amd64])";
        assert_eq!(file_name(line).unwrap(), "libc6_2.36-9+deb12u10_amd64.deb");
        assert_eq!(file_name("Inst x"), None);
    }

    #[test]
    fn the_mirror_is_debians_main_archive() {
        let targets = "http://a/x/|Other|stable|stable|main\n\
                       http://b/debian-security/|Debian-Security|bookworm-security|bookworm-security|main\n\
                       http://c/debian/|Debian|bookworm-updates|bookworm-updates|main\n\
                       http://d/debian/|Debian|bookworm|bookworm|contrib\n\
                       http://e/debian/|Debian|bookworm|bookworm|main\n";
        assert_eq!(choose_mirror(targets).as_deref(), Some("http://e/debian/"));
        assert_eq!(choose_mirror("http://a/x/|Other|stable|stable|main\n"), None);
        assert_eq!(
            choose_mirror("http://n/debian/|$(LABEL)||trixie|main\n").as_deref(),
            Some("http://n/debian/")
        );
    }
}
