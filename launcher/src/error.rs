//! The crate's one error type, and the catalogue of everything that can be refused: code, exit
//! status, meaning. docs/FAILURES.md is checked against it.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Refused, or failed before the program ran, as with docker, env and timeout.
pub const EXIT_REFUSED: u8 = 125;
/// The program was found and cannot be executed.
pub const EXIT_NOT_EXECUTABLE: u8 = 126;
/// The program was not found.
pub const EXIT_NOT_FOUND: u8 = 127;

macro_rules! catalogue {
    ($($variant:ident $code:literal $exit:ident $meaning:literal;)*) => {
        /// What went wrong, by kind.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)*
        }

        impl Code {
            /// Every kind, in the catalogue's order.
            #[cfg(test)]
            pub const ALL: &[Code] = &[$(Code::$variant),*];

            /// The name that messages and the documentation use.
            pub fn name(self) -> &'static str {
                match self { $(Code::$variant => $code),* }
            }

            /// The exit status.
            pub fn exit(self) -> u8 {
                match self { $(Code::$variant => $exit),* }
            }

            /// One sentence for the catalogue.
            #[cfg(test)]
            pub fn meaning(self) -> &'static str {
                match self { $(Code::$variant => $meaning),* }
            }
        }
    };
}

catalogue! {
    Usage "usage" EXIT_REFUSED "The command line cannot be understood.";
    ConfigUnreadable "config-unreadable" EXIT_REFUSED "A configuration file exists and cannot be read.";
    ConfigInvalid "config-invalid" EXIT_REFUSED "A configuration file, HPC_LAUNCH_ variable or flag holds something that is no valid value.";
    ConfigLocked "config-locked" EXIT_REFUSED "A setting that the site's administrator has locked was given another value.";
    ImageMissing "image-missing" EXIT_REFUSED "There is nothing at the image's path.";
    ImageUnreadable "image-unreadable" EXIT_REFUSED "The image exists and may not be read.";
    ImageUnknown "image-unknown" EXIT_REFUSED "The file is not an image of a kind that can be run.";
    ImageDamaged "image-damaged" EXIT_REFUSED "The image is truncated or its headers contradict themselves.";
    ImageLayout "image-layout" EXIT_REFUSED "The image's directory tree cannot carry a sandbox: link loops, or a file where a directory is needed.";
    ImageName "image-name" EXIT_REFUSED "An image's name, reference or digest cannot be understood, or does not say which image is meant.";
    ImageHostile "image-hostile" EXIT_REFUSED "An archive asks for what no image may have: a path out of the root, headers or counts without bounds.";
    ImageTooLarge "image-too-large" EXIT_REFUSED "An image holds more than the limit, which the user can raise.";
    ImageArchitecture "image-architecture" EXIT_REFUSED "The image is for another machine.";
    ImageDigest "image-digest" EXIT_REFUSED "What was read of an image is not what its digest says.";
    ImageUnsupported "image-unsupported" EXIT_REFUSED "The image is encrypted, or has something that no user can mount.";
    ImageUnsigned "image-unsigned" EXIT_REFUSED "A signature is required, and the image, or a part of it, has none.";
    SignatureInvalid "signature-invalid" EXIT_REFUSED "A signature of the image is wrong, or the image is not what was signed.";
    SignatureKey "signature-key" EXIT_REFUSED "The key that signed the image is in no key ring, has expired or was revoked.";
    KeyRing "key-ring" EXIT_REFUSED "There is no key ring to verify signatures with, or one cannot be used.";
    GpgvMissing "gpgv-missing" EXIT_REFUSED "Only gpgv can verify signatures, and it is not installed.";
    GpgvFailed "gpgv-failed" EXIT_REFUSED "gpgv could not be run, or did not say whether a signature is right.";
    BenchMissing "bench-missing" EXIT_REFUSED "The benchmarks are a program of their own, and it is not installed.";
    StoreUnusable "store-unusable" EXIT_REFUSED "A store of images is none, or may not be written to.";
    StoreFull "store-full" EXIT_REFUSED "There is not enough space for an image.";
    StoreBusy "store-busy" EXIT_REFUSED "Somebody else makes the same image and does not proceed.";
    RegistryUnreachable "registry-unreachable" EXIT_REFUSED "A registry does not answer, its certificate is not trusted, or it does not speak as one.";
    RegistryDenied "registry-denied" EXIT_REFUSED "A registry wants other credentials, or none were found for it.";
    RegistryLimit "registry-limit" EXIT_REFUSED "A registry wants fewer requests.";
    ImageIo "image-io" EXIT_REFUSED "Reading or writing an image failed.";
    DirectoryTooWide "directory-too-wide" EXIT_REFUSED "A mount point must be made in a directory of the image with too many entries to lay out anew.";
    SquashfuseMissing "squashfuse-missing" EXIT_REFUSED "Only squashfuse can mount the image here, and it is not installed.";
    FuseClosed "fuse-closed" EXIT_REFUSED "Only FUSE can mount the image here, and /dev/fuse may not be opened.";
    SquashfsMount "squashfs-mount" EXIT_REFUSED "Mounting the SquashFS image failed.";
    OverlayUnusable "overlay-unusable" EXIT_REFUSED "Something that was to be laid over the image cannot be, or cannot take writes.";
    OverlayBusy "overlay-busy" EXIT_REFUSED "Another sandbox of this node writes to the same overlay.";
    Fuse2fsMissing "fuse2fs-missing" EXIT_REFUSED "Only fuse2fs can mount an ext2, ext3 or ext4 overlay here, and it is not installed.";
    ExtMount "ext-mount" EXIT_REFUSED "Mounting the ext2, ext3 or ext4 file of an overlay failed.";
    UserNamespace "user-namespace" EXIT_REFUSED "This user may not make a user namespace here.";
    Mount "mount" EXIT_REFUSED "A mount, or another step of building the sandbox, failed.";
    BindSource "bind-source" EXIT_REFUSED "The host's side of a bind does not exist or may not be opened.";
    BindTarget "bind-target" EXIT_REFUSED "The container's side of a bind cannot be used.";
    SandboxBusy "sandbox-busy" EXIT_REFUSED "Another rank of this job is building the sandbox and does not finish.";
    LockForeign "lock-foreign" EXIT_REFUSED "Another user's process holds the name under which this job's ranks meet.";
    PmiMismatch "pmi-mismatch" EXIT_REFUSED "The launcher and the program's MPI cannot talk to each other: every rank would be a job of one.";
    PmiUnusable "pmi-unusable" EXIT_REFUSED "The launcher's PMI cannot be worked with: closed, contradicting itself, or in a dialect that is not spoken.";
    TooManyRanks "too-many-ranks" EXIT_REFUSED "More ranks were asked for than there are cores.";
    HelperLost "helper-lost" EXIT_REFUSED "The helper between the launcher and the program's MPI is gone.";
    HostMpiMissing "host-mpi-missing" EXIT_REFUSED "The host's MPI that was asked for is not there, or none is there that could replace the image's.";
    NotInjectable "not-injectable" EXIT_REFUSED "No other MPI can be put under this program: it is static, or made for another C library.";
    LibcTooOld "libc-too-old" EXIT_REFUSED "Neither C library, the image's or the host's, has every version that the mixed process needs.";
    BindingsMissing "bindings-missing" EXIT_REFUSED "The host's MPI comes without bindings (Fortran, C++) that the program links.";
    HostMpiWithoutGpus "host-mpi-without-gpus" EXIT_REFUSED "The image's MPI sends GPUs' memory, and the host's, which was asked for, does not.";
    PluginUnloadable "plugin-unloadable" EXIT_REFUSED "A plugin of the host's MPI would not load inside the container.";
    HostFabricMissing "host-fabric-missing" EXIT_REFUSED "The host's fabric libraries were asked for, and nothing is loaded that this host has.";
    FabricTooOld "fabric-too-old" EXIT_REFUSED "The host's fabric libraries were asked for, and are older than those that the image's MPI was built with.";
    DeviceUnknown "device-unknown" EXIT_REFUSED "A device that was asked for is described nowhere, or only in a file that does not count.";
    DeviceMissing "device-missing" EXIT_REFUSED "A file of a device that was asked for is not on this host, or is of another device or version.";
    DeviceDenied "device-denied" EXIT_REFUSED "This user may not open a file of a device that was asked for.";
    DeviceUnsupported "device-unsupported" EXIT_REFUSED "The description of a device asks for something that no sandbox does.";
    ProgramNotFound "program-not-found" EXIT_NOT_FOUND "The command does not exist inside the container.";
    ProgramNotExecutable "program-not-executable" EXIT_NOT_EXECUTABLE "The command exists and is not executable.";
    InterpreterMissing "interpreter-missing" EXIT_NOT_EXECUTABLE "The command's interpreter (of its #! line, or its dynamic loader) is not in the container.";
    WrongArchitecture "wrong-architecture" EXIT_NOT_EXECUTABLE "The command is a program for another machine.";
    LibraryMissing "library-missing" EXIT_REFUSED "A library that the program needs is in no place where its loader looks.";
    LibraryDamaged "library-damaged" EXIT_REFUSED "A file in the place of a library that the program needs is no library.";
    SymbolMissing "symbol-missing" EXIT_REFUSED "A symbol or version that must be bound before the program starts is defined nowhere.";
    ProcessorTooOld "processor-too-old" EXIT_REFUSED "The program or a library of it is made for a newer processor.";
    Interrupted "interrupted" EXIT_REFUSED "A signal ended the work before it was done; what it had made is removed.";
    Exec "exec" EXIT_NOT_EXECUTABLE "The kernel refused to execute the command.";
}

/// So many further reasons are printed.
const MAX_ALSO: usize = 3;

/// A refusal: what was tried on which path, why it failed, and what to do.
#[derive(Debug, Clone)]
pub struct Error {
    /// Its kind.
    pub code: Code,
    /// What was tried, on which path, and why it failed.
    pub what: String,
    /// What to do.
    pub cure: String,
    /// Further reasons.
    pub also: Vec<Error>,
}

impl Error {
    /// A refusal of this kind.
    pub fn new(code: Code, what: impl Into<String>, cure: impl Into<String>) -> Error {
        Error { code, what: what.into(), cure: cure.into(), also: Vec::new() }
    }

    /// A system call of the sandbox's construction that failed.
    pub fn step(what: impl fmt::Display, e: impl Into<std::io::Error>) -> Error {
        let e = e.into();
        Error::new(
            Code::Mount,
            format!("{what}: {e}"),
            "run `hpc-launch plan` with the same arguments to see every step; if the step should be allowed, \
             look for a security module (AppArmor, SELinux) or seccomp filter that forbids it",
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.code.name(), harmless(&self.what))?;
        if !self.cure.is_empty() {
            write!(f, "\n  what to do: {}", harmless(&self.cure))?;
        }
        for also in self.also.iter().take(MAX_ALSO) {
            write!(f, "\n  and [{}] {}", also.code.name(), harmless(&also.what))?;
        }
        match self.also.len().saturating_sub(MAX_ALSO) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more: see hpc-launch check"),
        }
    }
}

/// Names of an image's files stand in messages: what a terminal would obey is shown instead.
pub fn harmless(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if obeyed(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

impl std::error::Error for Error {}

impl From<image_store::Error> for Error {
    fn from(e: image_store::Error) -> Error {
        use image_store::Kind;
        let code = match e.kind {
            Kind::Name => Code::ImageName,
            Kind::Missing => Code::ImageMissing,
            Kind::Unreadable => Code::ImageUnreadable,
            Kind::Unknown => Code::ImageUnknown,
            Kind::Damaged => Code::ImageDamaged,
            Kind::Hostile => Code::ImageHostile,
            Kind::TooLarge => Code::ImageTooLarge,
            Kind::Architecture => Code::ImageArchitecture,
            Kind::Digest => Code::ImageDigest,
            Kind::Unsupported => Code::ImageUnsupported,
            Kind::Unsigned => Code::ImageUnsigned,
            Kind::Signature => Code::SignatureInvalid,
            Kind::Store => Code::StoreUnusable,
            Kind::Space => Code::StoreFull,
            Kind::Busy => Code::StoreBusy,
            Kind::Registry => Code::RegistryUnreachable,
            Kind::Denied => Code::RegistryDenied,
            Kind::RateLimit => Code::RegistryLimit,
            Kind::Io => Code::ImageIo,
        };
        Error::new(code, e.what, e.cure)
    }
}

/// An error inside the image: its tree is at fault, not the host.
pub fn in_image(image: &Path) -> impl Fn(abi_probe::Error) -> Error + '_ {
    move |e| {
        if let abi_probe::Error::Io { source, .. } = &e
            && source.kind() == std::io::ErrorKind::PermissionDenied
        {
            return Error::new(
                Code::ImageUnreadable,
                format!("in the image {}: {e}", image.display()),
                "ask its owner for read permission on it and search permission on every directory",
            );
        }
        Error::new(
            Code::ImageLayout,
            format!("in the image {}: {e}", image.display()),
            "repair the image; paths are followed inside it only, as the container will see them",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_is_obeyed_by_a_terminal() {
        let e = Error::new(Code::Usage, "a\u{1b}[31mb\nc", "d\u{9b}e");
        assert_eq!(e.to_string(), "[usage] a\\u{1b}[31mb\nc\n  what to do: d\\u{9b}e");
    }

    #[test]
    fn the_documentation_lists_every_code_with_its_status_and_meaning() {
        let doc = include_str!("../../docs/FAILURES.md");
        for code in Code::ALL {
            let row = format!("| `{}` | {} | {} |", code.name(), code.exit(), code.meaning());
            assert!(doc.contains(&row), "docs/FAILURES.md lacks this row:\n{row}");
        }
        let rows = doc.lines().filter(|l| l.starts_with("| `")).count();
        assert_eq!(rows, Code::ALL.len(), "docs/FAILURES.md has rows for codes that do not exist");
    }
}
