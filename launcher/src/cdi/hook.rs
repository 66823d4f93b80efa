//! Hooks of drivers that are known, done by us: their programs want a container of another kind, and root.

use super::spec::Hook;

/// What a known hook asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// Names for files: each what the link says, and where it stands.
    Links(Vec<(String, String)>),
    /// Libraries in these directories must be found.
    Libraries(Vec<String>),
    /// The image's CUDA driver, where it is newer than the host's and made for that.
    CudaCompat {
        /// The version of the host's driver.
        driver: Option<String>,
        /// The CUDA version of the host's driver.
        cuda: Option<String>,
        /// Where the image's is looked for.
        directory: String,
    },
    /// Nothing has to be done here.
    Nothing,
}

/// Where images have NVIDIA's compatibility libraries.
const COMPAT: &str = "/usr/local/cuda/compat";

impl Known {
    /// Recognises a hook; the error says what is not known.
    pub fn of(hook: &Hook) -> Result<Known, String> {
        let program = hook.path.rsplit('/').next().unwrap_or_default();
        let words: Vec<&str> = hook.args.iter().skip(1).map(String::as_str).collect();
        let unknown = || Err(format!("{} {}", hook.path, words.join(" ")).trim_end().to_owned());
        let (verb, rest) = match (program, words.as_slice()) {
            // Libraries are looked for in the directories that loaders search without their cache, too.
            ("ldconfig" | "ldconfig.real", _) => {
                return Ok(Known::Nothing);
            }
            ("nvidia-cdi-hook", [verb, rest @ ..]) => (*verb, rest),
            ("nvidia-ctk", ["hook", verb, rest @ ..]) => (*verb, rest),
            _ => return unknown(),
        };
        let Some(options) = options(rest) else { return unknown() };
        let all =
            |name: &str| options.iter().filter(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()).collect();
        let last = |name: &str| options.iter().rev().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        match verb {
            "create-symlinks" => {
                let links: Vec<String> = all("link");
                let pairs = links
                    .iter()
                    .map(|l| l.split_once("::").filter(|(a, b)| !a.is_empty() && b.starts_with('/')));
                let pairs: Option<Vec<_>> =
                    pairs.map(|p| p.map(|(a, b)| (a.to_owned(), b.to_owned()))).collect();
                pairs.map(Known::Links).map_or_else(unknown, Ok)
            }
            "update-ldcache" => Ok(Known::Libraries(all("folder"))),
            "enable-cuda-compat" => Ok(Known::CudaCompat {
                driver: last("host-driver-version").filter(|v| !v.is_empty()),
                cuda: last("host-cuda-version").filter(|v| !v.is_empty()),
                directory: last("cuda-compat-container-root").unwrap_or_else(|| COMPAT.to_owned()),
            }),
            // Files of devices are the host's own, none can be made without privileges, and every GPU is there for
            // graphics too.
            "chmod" | "disable-device-node-modification" | "update-application-profile" => Ok(Known::Nothing),
            _ => unknown(),
        }
    }
}

/// `--name value` and `--name=value`.
fn options<'a>(words: &[&'a str]) -> Option<Vec<(&'a str, &'a str)>> {
    let mut words = words.iter();
    let mut out = Vec::new();
    while let Some(word) = words.next() {
        let name = word.strip_prefix("--").or(word.strip_prefix('-'))?;
        out.push(match name.split_once('=') {
            Some(pair) => pair,
            None => (name, *words.next()?),
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(path: &str, args: &[&str]) -> Result<Known, String> {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let hook_name = "createContainer".to_owned();
        Known::of(&Hook { hook_name, path: path.into(), args, env: Vec::new(), timeout: None })
    }

    #[test]
    fn nvidias_hooks_in_both_forms() {
        let link = ["--link", "libcuda.so.1::/usr/lib/libcuda.so", "--link=../a::/usr/lib/b"];
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let links =
            Known::Links(vec![pair("libcuda.so.1", "/usr/lib/libcuda.so"), pair("../a", "/usr/lib/b")]);
        let args = [&["nvidia-cdi-hook", "create-symlinks"][..], &link].concat();
        assert_eq!(known("/usr/bin/nvidia-cdi-hook", &args), Ok(links.clone()));
        let args = [&["nvidia-ctk", "hook", "create-symlinks"][..], &link].concat();
        assert_eq!(known("/usr/bin/nvidia-ctk", &args), Ok(links));
        let args = ["nvidia-cdi-hook", "update-ldcache", "--folder", "/usr/lib64"];
        assert_eq!(known("/usr/bin/nvidia-cdi-hook", &args), Ok(Known::Libraries(vec!["/usr/lib64".into()])));
        let args = ["nvidia-cdi-hook", "enable-cuda-compat", "--host-driver-version=550.1"];
        let compat = Known::CudaCompat { driver: Some("550.1".into()), cuda: None, directory: COMPAT.into() };
        assert_eq!(known("/usr/bin/nvidia-cdi-hook", &args), Ok(compat));
        for verb in ["chmod", "disable-device-node-modification", "update-application-profile"] {
            let args = ["nvidia-cdi-hook", verb, "--mode", "755"];
            assert!(matches!(known("/usr/bin/nvidia-cdi-hook", &args), Ok(Known::Nothing)), "{verb}");
        }
        assert!(matches!(known("/sbin/ldconfig", &[]), Ok(Known::Nothing)));
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (path, args, said) in [
            ("/bin/vendor-hook", &[][..], "/bin/vendor-hook"),
            ("/bin/vendor-hook", &["vendor-hook", "go"], "/bin/vendor-hook go"),
            ("/usr/bin/nvidia-cdi-hook", &["nvidia-cdi-hook"], "/usr/bin/nvidia-cdi-hook"),
            ("/usr/bin/nvidia-cdi-hook", &["nvidia-cdi-hook", "dance"], "/usr/bin/nvidia-cdi-hook dance"),
            (
                "/usr/bin/nvidia-cdi-hook",
                &["x", "create-symlinks", "--link", "a:b"],
                "/usr/bin/nvidia-cdi-hook create-symlinks --link a:b",
            ),
            ("/usr/bin/nvidia-ctk", &["nvidia-ctk", "cdi", "list"], "/usr/bin/nvidia-ctk cdi list"),
        ] {
            assert_eq!(known(path, args), Err(said.to_owned()));
        }
    }
}
