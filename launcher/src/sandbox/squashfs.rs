//! Mounts a SquashFS file in the sandbox: by the kernel when we may, else by squashfuse.
//!
//! A user may mount FUSE inside a user namespace of his own (Linux 4.18), but squashfuse would ask the
//! setuid fusermount. So we open /dev/fuse and mount it, and hand squashfuse the descriptor as
//! `/dev/fd/N` (libfuse 3, fuse_session_mount). It runs in the host's mount namespace: the sandbox dies
//! with its last rank, the kernel then ends the connection, and squashfuse with it.

use std::ffi::{CString, OsString};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::unistd::pipe2;

use super::loopdev;
use crate::detached;
use crate::error::{Code, Error, Result};

/// How the image will be mounted.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Loop device and the kernel's squashfs.
    Kernel,
    /// This program.
    Squashfuse(PathBuf),
}

/// A squashfuse that waits, outside of the mount namespace, for its mount.
pub struct Server {
    fuse: File,
    go: OwnedFd,
    errors: File,
    program: PathBuf,
    serving: Serving,
}

/// What a server of some file system says of itself when it fails.
pub struct Serving {
    /// The program's usual name.
    pub name: &'static str,
    /// The refusal, when it does not serve.
    pub code: Code,
    /// And what to do then.
    pub cure: &'static str,
    /// How to do without it.
    pub unpack: &'static str,
}

/// Finds squashfuse: the site's, or the multi-threaded low-level one, or the plain one.
pub fn find_squashfuse(configured: Option<&Path>) -> Result<PathBuf> {
    let missing = |what: String, cure: &str| Error::new(Code::SquashfuseMissing, what, cure);
    if let Some(path) = configured {
        return match nix::unistd::access(path, nix::unistd::AccessFlags::X_OK) {
            Ok(()) => Ok(path.to_owned()),
            Err(e) => Err(missing(
                format!("squashfuse = {}: {e}", path.display()),
                "correct the setting (`hpc-launch config` shows where it comes from)",
            )),
        };
    }
    // A site's default PATH may lack these for batch jobs.
    let usual = ["/usr/bin", "/usr/local/bin", "/bin"].map(|dir| Path::new(dir).join("squashfuse_ll"));
    which::which("squashfuse_ll")
        .or_else(|e| usual.into_iter().find(|p| p.is_file()).ok_or(e))
        .or_else(|_| which::which("squashfuse"))
        .map_err(|_| {
            missing(
                "only squashfuse can mount a SquashFS image for an ordinary user, and neither squashfuse_ll nor \
                 squashfuse is on PATH"
                    .to_owned(),
                "install it (package squashfuse), set squashfuse = \"/path\" in the configuration, or unpack the image: \
                 unsquashfs -d DIR FILE",
            )
        })
}

/// Starts squashfuse, waiting. To be called in the sandbox's user namespace (the kernel wants /dev/fuse
/// opened where the mount is made) and still in the host's mount namespace (squashfuse must not keep the
/// sandbox alive).
/// `held`: the image itself, where not what lies at its path is meant.
pub fn start_server(image: &Path, offset: u64, held: Option<&File>, program: PathBuf) -> Result<Server> {
    let offset = format!("offset={offset}");
    let options = if offset == "offset=0" { &[][..] } else { &["-o", &offset] };
    let serving = Serving {
        name: "squashfuse",
        code: Code::SquashfsMount,
        cure: "the image may be damaged (`unsquashfs -s FILE` reads its header), compressed by something this squashfuse \
               lacks, or squashfuse may be built on libfuse 2, which cannot be handed a mount",
        unpack: "unpack the image: unsquashfs -d DIR FILE",
    };
    start(image, held, program, options, serving)
}

/// Starts a server of any file system that is called as squashfuse is, with these options.
pub fn start(
    image: &Path,
    held: Option<&File>,
    program: PathBuf,
    options: &[&str],
    serving: Serving,
) -> Result<Server> {
    let name = serving.name;
    let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(|e| {
        Error::new(
            Code::FuseClosed,
            format!("cannot open /dev/fuse, which {name} needs to mount {}: {e}", image.display()),
            format!(
                "ask the administrator for mode 0666 on /dev/fuse, as udev sets it (and `modprobe fuse`), or {}",
                serving.unpack
            ),
        )
    })?;
    let failed = |what: String| move |e: nix::Error| Error::step(what, e);
    let (wait, go) = pipe2(OFlag::O_CLOEXEC).map_err(failed(format!("making a pipe to {name}")))?;
    let errors = memory_file()?;
    let mut arguments = vec![program.clone().into_os_string().into_vec(), b"-f".to_vec()];
    arguments.extend(options.iter().map(|option| option.as_bytes().to_vec()));
    let file = match held {
        Some(_) => format!("/dev/fd/{IMAGE_FD}").into_bytes(),
        None => image.as_os_str().to_owned().into_vec(),
    };
    arguments.extend([file, format!("/dev/fd/{FUSE_FD}").into_bytes()]);
    let arguments = arguments
        .into_iter()
        .map(CString::new)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|e| Error::new(Code::Usage, format!("image path: {e}"), "rename the image"))?;
    let null =
        File::open("/dev/null").map_err(|e| Error::step(format!("opening /dev/null for {name}"), e))?;
    // It runs in a session of its own and holds nothing else: hydra takes the end of PMI_FD for a rank's
    // death, and a launcher waits for the end of every rank's output.
    let held = held.map_or(null.as_fd(), |file| file.as_fd());
    let descriptors = [null.as_fd(), null.as_fd(), errors.as_fd(), fuse.as_fd(), held, wait.as_fd()];
    detached::spawn(descriptors, |kept| serve(&arguments, kept))
        .map_err(failed(format!("starting {name}")))?;
    Ok(Server { fuse, go, errors, program, serving })
}

/// squashfuse's descriptor of /dev/fuse: its place below.
const FUSE_FD: i32 = 3;
/// The image whose signatures were verified: that file, whatever is at its path by now.
const IMAGE_FD: i32 = 4;

/// Becomes squashfuse once the mount is there; ends if the rank that would make it has died.
fn serve(arguments: &[CString], [.., go]: [BorrowedFd; 6]) {
    let _ = nix::unistd::chdir("/");
    let mut byte = [0u8; 1];
    if matches!(nix::unistd::read(go, &mut byte), Ok(1)) {
        let _ = nix::unistd::close(go.as_raw_fd());
        let _ = nix::unistd::execv(&arguments[0], arguments);
        eprintln!("cannot execute {}", arguments[0].to_string_lossy());
    }
}

fn memory_file() -> Result<File> {
    nix::sys::memfd::memfd_create(c"squashfuse errors", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
        .map(File::from)
        .map_err(|e| Error::step("making a file for squashfuse's errors", e))
}

impl Server {
    /// Mounts at `target` (in the sandbox's mount namespace) and lets squashfuse serve it.
    pub fn mount(mut self, image: &Path, target: &Path, uid: u32, gid: u32) -> Result<()> {
        let options =
            format!("fd={},rootmode=40000,user_id={uid},group_id={gid}", self.fuse.as_fd().as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
        let Serving { name, code, cure, .. } = self.serving;
        mount(Some(name), target, Some(format!("fuse.{name}").as_str()), flags, Some(options.as_str()))
            .map_err(|e| Error::step(format_args!("mounting FUSE for {}", image.display()), e))?;
        nix::unistd::write(&self.go, &[1])
            .map_err(|e| Error::step(format_args!("telling {name} to start"), e))?;
        // Ours must be closed, or squashfuse's death would leave the mount waiting for an answer.
        drop(self.fuse);
        // The first look waits for squashfuse's answer; it fails when squashfuse does.
        match std::fs::metadata(target) {
            Ok(_) => Ok(()),
            Err(e) => {
                let mut text = String::new();
                // squashfuse may still be writing its last words.
                std::thread::sleep(std::time::Duration::from_millis(50));
                let _ = self.errors.rewind();
                let _ = self.errors.take(4096).read_to_string(&mut text);
                Err(Error::new(
                    code,
                    format!(
                        "{} does not serve {}: {e}{}{}",
                        self.program.display(),
                        image.display(),
                        if text.is_empty() { "" } else { "; it says: " },
                        text.trim(),
                    ),
                    cure,
                ))
            }
        }
    }
}

/// Mounts by the kernel, with a loop device.
pub fn mount_by_kernel(image: &Path, offset: u64, target: &Path) -> Result<()> {
    let failed = |what: String| {
        move |e: std::io::Error| {
            Error::new(
                Code::SquashfsMount,
                format!("{what}: {e}"),
                "check the image with `unsquashfs -s FILE`; the kernel's log (dmesg) has its own words",
            )
        }
    };
    let file = File::open(image).map_err(failed(format!("opening {}", image.display())))?;
    let (device, _open) = loopdev::attach(&file, offset)
        .map_err(failed(format!("attaching {} to a loop device", image.display())))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
    mount(Some(&device), target, Some("squashfs"), flags, None::<&Path>)
        .map_err(|e| failed(format!("mounting {} ({})", image.display(), device.display()))(e.into()))
}

/// Whether root can mount SquashFS here: a loop device and the file system's driver.
pub fn kernel_can() -> bool {
    Path::new("/dev/loop-control").exists() && has_driver("squashfs")
}

/// Whether the kernel has a file system's driver.
pub fn has_driver(name: &str) -> bool {
    let listed =
        std::fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.lines().any(|l| l.trim() == name));
    // The driver may be a module that mount(2) loads.
    let module = || {
        let release = nix::sys::utsname::uname().map(|u| OsString::from(u.release())).unwrap_or_default();
        let dir = Path::new("/lib/modules").join(release).join("kernel/fs").join(name);
        dir.is_dir()
    };
    listed || module()
}
