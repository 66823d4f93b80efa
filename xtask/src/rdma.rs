//! `cargo xtask test-rdma`: an adapter without hardware. Debian's kernel with Soft-RoCE runs in a virtual machine whose
//! root is this machine's, read-only; in there tests/tests/rdma.rs runs, as root and as a plain user.
//!
//! By emulation only: nested virtual machines hang in KVM on some hosts.

use crate::layout::Layout;
use crate::run;
use crate::test::cargo;
use crate::user::{PlainUser, Stage};
use anyhow::{Context, Result, bail};
use std::fmt::Write;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What must be loaded: the root file system, and what the tests use.
const MODULES: &[&str] = &[
    "virtio_pci",
    "9p",
    "9pnet_virtio",
    // Without it rdma_rxe finds no checksum, and says that a file is missing.
    "crc32_generic",
    "rdma_rxe",
    "ib_uverbs",
    "rdma_ucm",
    "veth",
    "overlay",
    "fuse",
    "squashfs",
    "loop",
];

/// In the first memory disk: loads modules, and goes over to this machine's root.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in $(cat /modules); do insmod /lib/$module || echo \"cannot load $module\"; done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose root /root || echo 'no root'
for at in proc sys dev; do mount --move /$at /root/$at; done
exec switch_root /root /bin/sh -c \"$(cat /script)\"
";

/// Then: a link between two interfaces, an adapter on one of its ends. (An IPv4 address would not do: rxe sends UD
/// packets to its own by way of lo, where no adapter listens; its own IPv6 address it recognises.)
const SCRIPT: &str = "
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
for at in /tmp /run /var/tmp; do mount -t tmpfs none $at; chmod 1777 $at; done
chmod 0755 /run
mkdir -p /dev/shm /dev/pts
mount -t tmpfs none /dev/shm; chmod 1777 /dev/shm; mount -t devpts devpts /dev/pts
hostname rdma
ip link set lo up
ip link add e0 type veth peer name e1; ip link set e0 up; ip link set e1 up
rdma link add rxe0 type rxe netdev e0
ulimit -l unlimited
sleep 2
";

/// What it says last.
const STATUS: &str = "tests ended with status";
/// More than twice as long as it takes.
const LIMIT: &str = "1200";

/// Boots the machine, and judges by what it says.
pub fn test(layout: &Layout, stage: &Stage, user: &PlainUser) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        eprintln!("skipped: the virtual machine is known for x86_64 only");
        return Ok(());
    }
    let directory = layout.target.join("rdma");
    fs::create_dir_all(&directory)?;
    let log = layout.log("rdma")?;
    let kernel = Kernel::get(&directory, &log)?;
    let program = test_program(layout)?;
    let mut script = SCRIPT.to_owned();
    let mut export = |name: &str, value: &Path| writeln!(script, "export {name}='{}'", value.display());
    export("HPC_LAUNCH_RDMA", Path::new("1"))?;
    export("HPC_LAUNCH_BIN", &stage.launcher)?;
    export("HPC_LAUNCH_IMAGES", &stage.images())?;
    export("HPC_LAUNCH_HOSTS", &layout.root.join("target/hosts"))?;
    if let Some(account) = user.account() {
        export("HPC_LAUNCH_TEST_USER", Path::new(account))?;
    }
    let run = format!("{} --test-threads=1 2>&1", program.display());
    write!(
        script,
        "cd / && {run}\necho \"{STATUS} $?\"\nsync; echo o > /proc/sysrq-trigger; while :; do :; done\n"
    )?;
    let disk = kernel.first_disk(&directory, &script)?;

    let mut qemu = Command::new("timeout");
    qemu.args([
        LIMIT,
        "qemu-system-x86_64",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "3072",
    ]);
    qemu.args([
        "-nographic",
        "-no-reboot",
        "-net",
        "none",
        "-append",
        "console=ttyS0 quiet loglevel=3 panic=-1",
    ]);
    qemu.args(["-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"]);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&disk);
    run::logged(&mut qemu, &log)?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let of_tests = said.lines().skip_while(|line| !line.starts_with("running "));
    // The kernel's own lines begin with a time.
    for line in of_tests.filter(|line| !line.starts_with('[')) {
        println!("{}", line.trim_end());
    }
    if !said.lines().any(|line| line.trim_end() == format!("{STATUS} 0")) {
        bail!("the tests in the virtual machine did not pass: all that it said is in {}", log.display());
    }
    Ok(())
}

/// The tests as a program: cargo cannot run in there.
fn test_program(layout: &Layout) -> Result<PathBuf> {
    let mut build = cargo(layout);
    build.args(["test", "--release", "-p", "hpc-launch-tests", "--test", "rdma", "--no-run"]);
    let said = run::output(build.arg("--message-format=json"))?;
    // Programs of the package are built with it, in any order.
    let tests = said.lines().filter(|line| line.contains("\"kind\":[\"test\"]"));
    let mut program = tests.filter_map(|line| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        rest.split_once('"').map(|(path, _)| PathBuf::from(path))
    });
    program.next_back().context("cargo named no program")
}

/// A kernel that was unpacked.
struct Kernel {
    image: PathBuf,
    modules: Vec<PathBuf>,
}

impl Kernel {
    /// The newest of this machine's release, kept between runs.
    fn get(directory: &Path, log: &Path) -> Result<Kernel> {
        let depends = run::output(Command::new("apt-cache").args(["depends", "linux-image-amd64"]))?;
        let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        let package = package.context("linux-image-amd64 depends on no kernel")?.to_owned();
        let release = package.trim_start_matches("linux-image-").to_owned();
        let root = directory.join(&package);
        if !root.exists() {
            let unpacked = directory.join(format!(".{package}"));
            crate::cache::remove(&unpacked)?;
            fs::create_dir_all(&unpacked)?;
            run::logged(Command::new("apt-get").args(["download", &package]).current_dir(&unpacked), log)?;
            let file = fs::read_dir(&unpacked)?.flatten().map(|entry| entry.path()).next();
            let file = file.context("apt-get has downloaded nothing")?;
            run::logged(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&unpacked), log)?;
            fs::remove_file(file)?;
            // kmod looks in /lib, where releases with /usr merged have no modules.
            let merged = unpacked.join("usr/lib/modules");
            if merged.exists() && !unpacked.join("lib").exists() {
                symlink("usr/lib", unpacked.join("lib"))?;
            }
            run::logged(Command::new("depmod").arg("-b").arg(&unpacked).arg(&release), log)?;
            fs::rename(&unpacked, &root)?;
        }
        let mut modules: Vec<PathBuf> = Vec::new();
        for name in MODULES {
            let mut show = Command::new("modprobe");
            show.arg("-d").arg(&root).args(["-S", &release, "--ignore-install", "--show-depends", name]);
            let said = run::output(&mut show)?;
            for path in said.lines().filter_map(|line| line.strip_prefix("insmod ")) {
                let path = PathBuf::from(path.split_whitespace().next().unwrap_or_default());
                if !modules.contains(&path) {
                    modules.push(path);
                }
            }
        }
        Ok(Kernel { image: root.join(format!("boot/vmlinuz-{release}")), modules })
    }

    /// busybox, the modules, and what is to be done.
    fn first_disk(&self, directory: &Path, script: &str) -> Result<PathBuf> {
        let tree = directory.join("disk");
        crate::cache::remove(&tree)?;
        for name in ["bin", "lib", "dev", "proc", "sys", "root"] {
            fs::create_dir_all(tree.join(name))?;
        }
        fs::copy("/bin/busybox", tree.join("bin/busybox")).context("busybox-static brings /bin/busybox")?;
        let mut names = String::new();
        for module in &self.modules {
            let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(plain) = name.strip_suffix(".xz") {
                let unpacked = File::create(tree.join("lib").join(plain))?;
                let status = Command::new("xz").arg("-dc").arg(module).stdout(unpacked).status()?;
                if !status.success() {
                    bail!("xz cannot unpack {}", module.display());
                }
                writeln!(names, "{plain}")?;
            } else {
                fs::copy(module, tree.join("lib").join(&name))?;
                writeln!(names, "{name}")?;
            }
        }
        fs::write(tree.join("modules"), names)?;
        fs::write(tree.join("script"), script)?;
        fs::write(tree.join("init"), INIT)?;
        run::output(Command::new("chmod").arg("0755").arg(tree.join("init")))?;
        let disk = directory.join("disk.cpio");
        let packed = File::create(&disk)?;
        let mut find = Command::new("find").arg(".").current_dir(&tree).stdout(Stdio::piped()).spawn()?;
        let list = find.stdout.take().context("no pipe")?;
        let mut cpio = Command::new("cpio");
        cpio.args(["--quiet", "-o", "-H", "newc"]).current_dir(&tree).stdin(list).stdout(packed);
        let status = cpio.status().context("cannot run cpio")?;
        if !find.wait()?.success() || !status.success() {
            bail!("cpio cannot pack {}", tree.display());
        }
        Ok(disk)
    }
}
