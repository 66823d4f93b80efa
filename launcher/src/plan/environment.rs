//! The program's environment: the host's, minus what misleads inside, under the image's, the devices', the user's.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use abi_probe::inject::Injection;
use pmi_shim::glob;
use pmi_shim::passthrough::{Treatment, treatment};

use serde::{Deserialize, Serialize};

use super::Change;
use crate::cdi::Told;
use crate::config::Config;
use crate::environ::Environ;
use crate::image::environment::ImageEnvironment;

/// Where programs are looked for when the image does not say.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a program must be told so that it loads the host's libraries: a note for ranks that join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injected {
    library_path: PathBuf,
    prefix: Option<PathBuf>,
}

/// Variables that tell a relocated Open MPI where its tree is, all or none: with one of them alone Open MPI 4
/// hangs in MPI_Init (opal/mca/installdirs/env, pmix's and prte's likewise).
const PREFIXES: &[&str] = &["OPAL_PREFIX", "PMIX_PREFIX", "PMIX_INSTALL_PREFIX", "PRTE_PREFIX"];

impl Injected {
    /// From the proof.
    pub fn of(injection: &Injection) -> Injected {
        Injected { library_path: injection.library_path.clone(), prefix: injection.prefix.clone() }
    }

    /// Adds it to an environment.
    pub fn apply(&self, environ: &mut Environ) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut set = |name: &str, value: String, why: &str| {
            environ.set(name, &value);
            changes.push(Change { name: name.to_owned(), value: Some(value), why: why.to_owned() });
        };
        for name in PREFIXES {
            if let Some(prefix) = &self.prefix {
                set(name, prefix.display().to_string(), "the tree of the host's MPI, which was moved");
            }
        }
        let mut list = self.library_path.display().to_string();
        if let Some(more) = environ.get("LD_LIBRARY_PATH").filter(|more| !more.is_empty()) {
            list = format!("{list}:{more}");
        }
        environ.set("LD_LIBRARY_PATH", &list);
        let why = "libraries of the host".to_owned();
        changes.push(Change { name: "LD_LIBRARY_PATH".to_owned(), value: Some(list), why });
        changes
    }
}

/// Makes the environment and the list of changes that lead to it.
pub fn make(
    host: &Environ,
    image: &ImageEnvironment,
    devices: &Told,
    config: &Config,
    workdir: &Path,
) -> (Environ, Vec<Change>) {
    let mut out = host.clone();
    let mut changes: Vec<Change> = Vec::new();
    let mut note = |name: &str, value: Option<&str>, why: String| {
        changes.retain(|c| c.name != name);
        changes.push(Change { name: name.to_owned(), value: value.map(String::from), why });
    };
    for (name, _) in host.iter() {
        let Some(text) = name.to_str() else { continue };
        let reason = match treatment(text) {
            Some(row) if row.treatment == Treatment::Drop => row.reason.to_owned(),
            Some(_) => continue,
            None if config.clean_env.value => {
                format!("clean environment ({})", config.clean_env.origin)
            }
            None => continue,
        };
        out.remove(name);
        note(text, None, reason);
    }
    // The host's PATH names the host's programs.
    out.set("PATH", DEFAULT_PATH);
    note("PATH", Some(DEFAULT_PATH), "the host's PATH names the host's programs".to_owned());
    for (name, value) in &image.env {
        match treatment(name).map(|row| row.treatment) {
            Some(Treatment::Keep) => continue,
            Some(Treatment::Tune) if host.get_os(name).is_some() => continue,
            _ => {}
        }
        out.set(name, value);
        note(name, Some(value), "the image says so".to_owned());
    }
    for change in devices.apply(&mut out) {
        note(&change.name, change.value.as_deref(), change.why);
    }
    for pattern in &config.unset_env {
        let matching: Vec<String> = out
            .iter()
            .filter_map(|(n, _)| n.to_str())
            .filter(|n| glob::matches(&pattern.value, n))
            .map(String::from)
            .collect();
        for name in matching {
            out.remove(OsStr::new(&name));
            note(&name, None, format!("unset {} ({})", pattern.value, pattern.origin));
        }
    }
    for pair in &config.env {
        let (name, value) = &pair.value;
        out.set(name, value);
        note(name, Some(value), pair.origin.to_string());
    }
    if out.get_os("PWD").is_some_and(|pwd| pwd != workdir.as_os_str()) {
        out.set("PWD", workdir);
        note("PWD", Some(&workdir.display().to_string()), "the working directory inside".to_owned());
    }
    (out, changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Options;

    fn run(host: &[(&str, &str)], image: &[(&str, &str)], options: Options) -> Environ {
        let host = Environ::from_pairs(host);
        let config = Config::load(&Environ::default(), Some(&options)).unwrap();
        let image = ImageEnvironment {
            env: image.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            ..ImageEnvironment::default()
        };
        make(&host, &image, &Told::default(), &config, Path::new("/w")).0
    }

    #[test]
    fn layers_lie_in_order() {
        let host = [
            ("PATH", "/host"),
            ("A", "host"),
            ("B", "host"),
            ("C", "host"),
            ("PWD", "/x"),
            ("LD_LIBRARY_PATH", "/h"),
        ];
        let options =
            Options { env: vec!["B=user".into()], unset_env: vec!["C*".into()], ..Options::default() };
        let env = run(&host, &[("A", "image"), ("B", "image"), ("LD_LIBRARY_PATH", "/image")], options);
        let get = |n: &str| env.get(n);
        assert_eq!(get("PATH").as_deref(), Some(DEFAULT_PATH));
        assert_eq!((get("A").as_deref(), get("B").as_deref(), get("C")), (Some("image"), Some("user"), None));
        assert_eq!((get("LD_LIBRARY_PATH").as_deref(), get("PWD").as_deref()), (Some("/image"), Some("/w")));
    }

    #[test]
    fn no_image_can_change_who_the_rank_is() {
        let host = [("PMI_RANK", "3"), ("UCX_TLS", "host")];
        let env =
            run(&host, &[("PMI_RANK", "0"), ("UCX_TLS", "image"), ("PMIX_RANK", "0")], Options::default());
        assert_eq!(env.get("PMI_RANK").as_deref(), Some("3"));
        assert_eq!(env.get("UCX_TLS").as_deref(), Some("host"));
        assert_eq!(env.get("PMIX_RANK"), None);
    }

    #[test]
    fn a_clean_environment_keeps_the_launchers_variables() {
        let host =
            [("PMI_FD", "6"), ("SLURM_JOB_ID", "1"), ("EDITOR", "vi"), ("HOME", "/h"), ("UCX_TLS", "sm")];
        let env = run(&host, &[], Options { clean_env: true, ..Options::default() });
        let names: Vec<_> = env.iter().map(|(n, _)| n.to_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["HOME", "PATH", "PMI_FD", "SLURM_JOB_ID", "UCX_TLS"]);
    }
}
