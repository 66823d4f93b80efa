//! Machines that are made to look as if they had adapters or GPUs: by mounts, in a namespace of one command's.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::host::{Who, is_root};
use crate::image::directory;
use crate::run::{Outcome, Run};

/// The driver's.
pub const VERSION: &str = "550.54.14";

/// libcuda and libnvidia-ml.
const STUBS: [(&str, &str); 3] = [
    ("gpus.h", include_str!("../stubs/gpus.h")),
    ("cuda.c", include_str!("../stubs/cuda.c")),
    ("nvidia-ml.c", include_str!("../stubs/nvml.c")),
];

/// A /dev of its own in $M/dev, with what programs need.
const DEV: &str = "mkdir -p $M/dev && mount -t tmpfs none $M/dev \
     && cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty $M/dev/ \
     && mkdir $M/dev/shm $M/dev/pts && mount --rbind /dev/shm $M/dev/shm && mount --rbind /dev/pts $M/dev/pts \
     && ln -s /proc/self/fd $M/dev/fd";

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Whether such machines cannot be made, which is said.
pub fn skipped() -> bool {
    if !is_root() {
        eprintln!("skipped: only root can make a machine look as if it had other devices");
    }
    !is_root()
}

/// A line of shell that must succeed.
#[track_caller]
pub fn sh(directory: &Path, script: &str) {
    let output = Command::new("sh").args(["-euc", script]).current_dir(directory).output().expect("a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A GPU's.
pub fn uuid(n: usize) -> String {
    format!("GPU-{n}0000000-1111-2222-3333-444455556666")
}

/// A machine with NVIDIA's driver and two GPUs.
pub struct Gpus {
    dir: TempDir,
}

impl Default for Gpus {
    fn default() -> Gpus {
        Gpus::new()
    }
}

impl Gpus {
    /// Its libraries are stubs, of which libcuda works: see `stubs/cuda.c`.
    pub fn new() -> Gpus {
        let machine = Gpus { dir: directory("/var/tmp") };
        let at = |name: &str| machine.dir.path().join(name);
        for name in ["lib", "bin", "proc/nvidia", "module/nvidia"] {
            fs::create_dir_all(at(name)).expect("a directory");
        }
        fs::write(at("module/nvidia/version"), format!("{VERSION}\n")).expect("written");
        for n in 0..2 {
            let of = at(&format!("proc/nvidia/gpus/0000:{}7:00.0", n + 1));
            fs::create_dir_all(&of).expect("a directory");
            let lines =
                format!("Model: \t\t NVIDIA T{n}\nGPU UUID: \t {}\nDevice Minor: \t {}\n", uuid(n), 1 - n);
            fs::write(of.join("information"), lines).expect("written");
        }
        for (name, stub) in STUBS {
            fs::write(at(name), stub).expect("written");
        }
        let script = format!(
            "for name in cuda nvidia-ml nvidia-ptxjitcompiler GLX_nvidia; do
               echo \"const char *of_the_driver(void) {{ return \\\"$name {VERSION}\\\"; }}\" > $name.c.part
               [ ! -e $name.c ] || cat $name.c >> $name.c.part
               cc -O1 -DDRIVER='\"{VERSION}\"' -xc $name.c.part -shared -fPIC -o lib/lib$name.so.{VERSION} -Wl,-soname,lib$name.so.1
             done; cp lib/libcuda.so.{VERSION} lib/libcuda.so.535.1
             printf '#!/bin/sh\necho GPU 0: of the driver\n' > bin/nvidia-smi; chmod +x bin/nvidia-smi; chmod -R a+rX ."
        );
        sh(machine.dir.path(), &script);
        fs::set_permissions(machine.dir.path(), Permissions::from_mode(0o755)).expect("a mode");
        machine
    }

    /// Where all of it lies.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The same, changed by a line of shell.
    pub fn but(&self, more: &str) -> String {
        format!("{}; {more}", self.prelude())
    }

    /// What the kernel and the driver's installation would show.
    pub fn prelude(&self) -> String {
        format!(
            "M={}; mkdir -p $M/sys /usr/local/nvidia \
             && mount --rbind /sys/module $M/sys && mount -t tmpfs none /sys/module \
             && for m in $M/sys/*; do mkdir /sys/module/${{m##*/}}; done && mkdir -p /sys/module/nvidia \
             && cp $M/module/nvidia/version /sys/module/nvidia/ \
             && mount -t tmpfs none /proc/driver && cp -r $M/proc/nvidia /proc/driver/ \
             && {DEV} && for n in nvidiactl nvidia-uvm nvidia0 nvidia1; do cp -a /dev/null $M/dev/$n; done \
             && mount --rbind $M/dev /dev && mount -t tmpfs none /usr/local/nvidia && mkdir /usr/local/nvidia/lib64 \
             && cp $M/lib/* /usr/local/nvidia/lib64/ && cp -r $M/bin /usr/local/nvidia/ \
             && mkdir $M/dev/nvidia-caps && mknod -m 0400 $M/dev/nvidia-caps/nvidia-cap1 c 241 1",
            text(self.dir.path()),
        )
    }

    /// Runs hpc-launch there.
    pub fn run(&self, who: Who, arguments: &[&str]) -> Outcome {
        Run::launch(who, arguments).prelude(self.prelude()).run()
    }
}

/// A machine with an adapter, `mlx5_0`, whose file is no adapter's: it is seen, and cannot be opened.
pub struct Adapter {
    dir: TempDir,
}

impl Default for Adapter {
    fn default() -> Adapter {
        Adapter::new()
    }
}

impl Adapter {
    /// Its port is active.
    pub fn new() -> Adapter {
        let machine = Adapter { dir: directory("/var/tmp") };
        // The file's numbers must be those that sysfs says (libibverbs/ibdev_nl.c, try_access_device): /dev/full's, which
        // takes no command.
        let script = "
            u=class/infiniband_verbs/uverbs0; d=class/infiniband/mlx5_0
            mkdir -p $u/device $d/device $d/ports/1/counters $d/ports/1/gids
            echo 6 > class/infiniband_verbs/abi_version; echo 1 > $u/abi_version
            echo mlx5_0 > $u/ibdev; echo 1:7 > $u/dev; echo 0x15b3 > $u/device/vendor; echo 0x1017 > $u/device/device
            echo pci:v000015B3d00001017sv000015B3sd00000000bc02sc07i00 > $u/device/modalias
            cp $u/device/* $d/device/; echo '1: CA' > $d/node_type; echo 248a:0703:0000:0001 > $d/node_guid
            echo '4: ACTIVE' > $d/ports/1/state; echo '5: LinkUp' > $d/ports/1/phys_state
            echo InfiniBand > $d/ports/1/link_layer; echo 0 > $d/ports/1/counters/port_xmit_data
            chmod -R a+rX .";
        sh(machine.dir.path(), script);
        machine
    }

    /// Below it is `class`, as in /sys.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The port's directory.
    pub fn port(&self) -> PathBuf {
        self.dir.path().join("class/infiniband/mlx5_0/ports/1")
    }

    /// What the kernel would show.
    pub fn prelude(&self) -> String {
        format!(
            "M={}; mkdir -p $M/all && mount -t tmpfs none $M/all \
             && for c in /sys/class/*; do mkdir -p $M/all/${{c##*/}} && mount --bind $c $M/all/${{c##*/}}; done \
             && for c in infiniband infiniband_verbs; do mkdir -p $M/all/$c && mount --bind $M/class/$c $M/all/$c; done \
             && mount --rbind $M/all /sys/class \
             && {DEV} && mkdir $M/dev/infiniband && cp -a /dev/full $M/dev/infiniband/uverbs0 \
             && cp -a /dev/null $M/dev/infiniband/rdma_cm && mount --rbind $M/dev /dev",
            text(self.dir.path())
        )
    }

    /// The same, changed by a line of shell.
    pub fn but(&self, more: &str) -> String {
        format!("{}; {more}", self.prelude())
    }
}
