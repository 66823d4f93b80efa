//! `--device`: devices as their drivers describe them for containers (CDI).

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hpc_launch_tests::host::{self, Who, everyone, is_root};
use hpc_launch_tests::image::{Throwaway, directory};
use hpc_launch_tests::leaks::Host;
use hpc_launch_tests::run::{Outcome, Run};
use tempfile::TempDir;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Descriptions, and files of a made-up driver.
struct Drivers {
    dir: TempDir,
}

impl Drivers {
    fn new() -> Drivers {
        let drivers = Drivers { dir: directory("/var/tmp") };
        for name in ["etc", "run", "lib"] {
            fs::create_dir(drivers.at(name)).unwrap();
            fs::set_permissions(drivers.at(name), Permissions::from_mode(0o755)).unwrap();
        }
        drivers
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file; `LIB` stands for the directory of the driver's files.
    fn write(&self, name: &str, contents: &str) {
        let contents = contents.replace("LIB", text(&self.at("lib")));
        fs::write(self.at(name), contents).unwrap();
        fs::set_permissions(self.at(name), Permissions::from_mode(0o644)).unwrap();
    }

    /// One device, `vendor.com/class=a`, with these edits.
    fn device(&self, edits: &str) {
        let text = format!(
            r#"{{"cdiVersion":"1.1.0","kind":"vendor.com/class","devices":[{{"name":"a","containerEdits":{edits}}}]}}"#
        );
        self.write("etc/one.json", &text);
    }

    fn run(&self, run: Run) -> Run {
        run.env("HPC_LAUNCH_CDI_DIRECTORIES", format!("{},{}", text(&self.at("etc")), text(&self.at("run"))))
    }

    /// A line of shell in an image, with this device.
    fn shell(&self, who: Who, image: &Throwaway, device: &str, script: &str) -> Outcome {
        let root = image.root();
        let line = ["--device", device, text(&root), "sh", "-c", script];
        self.run(Run::launch(who, line)).run()
    }

    fn list(&self, who: Who, json: bool) -> Outcome {
        self.run(Run::launch(who, ["cdi", "list"]).args(json.then_some("--json"))).run()
    }
}

/// A shared library of C, with this soname.
fn library(path: &Path, soname: &str, source: &str) {
    let file = path.with_extension("c");
    fs::write(&file, source).unwrap();
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-o"]).arg(path).arg(format!("-Wl,-soname,{soname}")).arg(&file);
    let output = compile.output().expect("a C compiler is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_file(file).unwrap();
}

/// The example of the specification's repository (README.md, schema/testdata), but for its hooks and file systems.
const EXAMPLE: &str = r#"{
  "cdiVersion": "0.6.0",
  "kind": "vendor.com/device",
  "devices": [
    {
      "name": "myDevice",
      "containerEdits": {
        "deviceNodes": [{"hostPath": "/dev/zero", "path": "/opt/vendor/card1", "type": "c", "major": 1, "minor": 5},
                        {"path": "/dev/null", "permissions": "rwm", "fileMode": 384, "uid": 1000, "gid": 1000}]
      }
    },
    {"name": "other", "containerEdits": {"env": ["OTHER=yes", "BAR=other"]}}
  ],
  "containerEdits": {
    "env": ["FOO=VALID_SPEC", "BAR=BARVALUE1"],
    "deviceNodes": [{"path": "/dev/full", "type": "c", "major": 1, "minor": 7}],
    "mounts": [
      {"hostPath": "LIB/vendorBin", "containerPath": "/bin/vendorBin"},
      {"hostPath": "LIB/data", "containerPath": "/usr/share/vendor/data", "options": ["ro", "nosuid", "nodev", "bind"]}
    ]
  }
}"#;

fn example() -> Drivers {
    let drivers = Drivers::new();
    drivers.write("etc/vendor.json", EXAMPLE);
    drivers.write("lib/vendorBin", "#!/bin/sh\necho the driver\n");
    fs::set_permissions(drivers.at("lib/vendorBin"), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(drivers.at("lib/data")).unwrap();
    fs::set_permissions(drivers.at("lib/data"), Permissions::from_mode(0o777)).unwrap();
    drivers.write("lib/data/file", "data");
    drivers
}

#[test]
fn the_specifications_example() {
    let (drivers, image) = (example(), Throwaway::new());
    let root = image.root();
    let root = text(&root);
    let before = Host::now();
    let script = "vendorBin; cat /usr/share/vendor/data/file; echo; echo $FOO $BAR $OTHER; \
                  head -c 3 /opt/vendor/card1 | wc -c; test -c /dev/full && echo full; \
                  touch /usr/share/vendor/data/new 2>/dev/null || echo read-only";
    for who in everyone() {
        let said = "the driver\ndata\nVALID_SPEC BARVALUE1\n3\nfull\nread-only";
        drivers.shell(*who, &image, "vendor.com/device=myDevice", script).prints(said);
        // What is the file's alone comes with any of its devices; the device's own edits come last.
        let outcome =
            drivers.shell(*who, &image, "vendor.com/device=other", "vendorBin; echo $FOO $BAR $OTHER");
        outcome.prints("the driver\nVALID_SPEC other yes");
        // Nothing without its being asked for.
        let line = [root, "sh", "-c", "echo [$FOO]; test -e /bin/vendorBin || echo none"];
        drivers.run(Run::launch(*who, line)).run().prints("[]\nnone");
        // The user has the last word.
        let line = ["--device=vendor.com/device=other", "--env", "BAR=mine", "--unset-env", "FOO"];
        let line = line.into_iter().chain([root, "sh", "-c", "echo [$FOO] $BAR"]);
        drivers.run(Run::launch(*who, line)).run().prints("[] mine");
    }
    before.is_as_before("devices");
    assert!(!image.at("bin/vendorBin").exists() && !image.at("opt").exists());
}

#[test]
fn a_plan_says_which_device_wants_what() {
    let (drivers, image) = (example(), Throwaway::new());
    let root = image.root();
    let root = text(&root);
    for who in everyone() {
        let line = ["plan", "--device", "vendor.com/device=myDevice", root, "true", "--json"];
        let outcome = drivers.run(Run::launch(*who, line)).run().good();
        let plan: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
        let why = format!(
            "device vendor.com/device=myDevice (--device), by {}",
            drivers.at("etc/vendor.json").display()
        );
        let steps = plan["steps"].as_array().unwrap();
        let of_it = |step: &&serde_json::Value| step["why"] == why.as_str();
        let at: Vec<&str> = steps.iter().filter(of_it).map(|s| s["at"].as_str().unwrap()).collect();
        assert_eq!(at, ["/bin/vendorBin", "/usr/share/vendor/data", "/opt/vendor/card1"], "{outcome}");
        let environment = plan["environment"].as_array().unwrap();
        let set: Vec<&str> = environment
            .iter()
            .filter(|c| c["why"] == why.as_str())
            .map(|c| c["name"].as_str().unwrap())
            .collect();
        assert_eq!(set, ["FOO", "BAR"], "{outcome}");
    }
}

#[test]
fn every_rank_has_it() {
    let drivers = example();
    let image = host::image("bookworm-openmpi");
    for who in everyone() {
        let script = "echo rank $OMPI_COMM_WORLD_RANK $FOO; vendorBin";
        let line = ["--device=vendor.com/device=myDevice", text(&image), "sh", "-c", script];
        let outcome = drivers.run(Run::mpirun(*who, 3, line)).run().good();
        let mut lines: Vec<String> = outcome.out().lines().map(str::to_owned).collect();
        lines.sort_unstable();
        let rank = |n: u32| format!("rank {n} VALID_SPEC");
        let expected = [rank(0), rank(1), rank(2)].into_iter().chain([
            "the driver".to_owned(),
            "the driver".into(),
            "the driver".into(),
        ]);
        assert_eq!(lines, expected.collect::<Vec<_>>(), "{outcome}");
    }
}

/// As nvidia-ctk writes it: libraries by their full names, links and the loader's cache left to hooks.
const NVIDIA: &str = "---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/null
  env:
  - NVIDIA_CTK_LIBCUDA_DIR=/usr/lib64
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args:
    - nvidia-cdi-hook
    - create-symlinks
    - --link
    - libcuda.so.1::/usr/lib64/libcuda.so
    env:
    - NVIDIA_CTK_DEBUG=false
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  - args:
    - nvidia-cdi-hook
    - enable-cuda-compat
    - --host-driver-version=550.54.14
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  - args:
    - nvidia-cdi-hook
    - update-ldcache
    - --folder
    - /usr/lib64
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  - args:
    - nvidia-cdi-hook
    - disable-device-node-modification
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/lib64/libcuda.so.550.54.14
    hostPath: LIB/libcuda.so.550.54.14
    options:
    - ro
    - nosuid
    - nodev
    - rbind
    - rprivate
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/zero
  name: \"0\"
- containerEdits:
    deviceNodes:
    - path: /dev/zero
  name: all
kind: nvidia.com/gpu
";

fn nvidia() -> Drivers {
    let drivers = Drivers::new();
    drivers.write("run/nvidia.yaml", NVIDIA);
    let path = drivers.at("lib/libcuda.so.550.54.14");
    library(&path, "libcuda.so.1", "int which(void) { return 550; }");
    drivers
}

/// A root file system with Python, which can be written to, made of another.
fn python() -> Throwaway {
    let image = Throwaway::new();
    let donor = host::image("bookworm-python");
    for name in ["usr", "opt"] {
        image.remove(name);
        let status = Command::new("cp").arg("-a").arg(donor.join(name)).arg(image.at(name)).status().unwrap();
        assert!(status.success());
    }
    for name in ["bin", "lib", "lib64"] {
        image.link(format!("usr/{name}"), name);
    }
    image
}

/// What `which` answers in the library of this name.
fn asks(name: &str) -> String {
    format!("import ctypes; print(ctypes.CDLL('{name}').which())")
}

#[test]
fn a_gpus_libraries_are_found_by_every_name() {
    let (drivers, image) = (nvidia(), host::image("bookworm-python"));
    let before = Host::now();
    for who in everyone() {
        for name in
            ["libcuda.so.1", "libcuda.so.550.54.14", "/usr/lib64/libcuda.so.1", "/usr/lib64/libcuda.so"]
        {
            let line =
                ["--device=nvidia.com/gpu=0", text(&image), "/opt/venv/bin/python3", "-c", &asks(name)];
            drivers.run(Run::launch(*who, line)).run().prints("550");
        }
        let line = ["--device=nvidia.com/gpu=all", text(&image), "sh", "-c", "echo $NVIDIA_VISIBLE_DEVICES"];
        drivers.run(Run::launch(*who, line)).run().prints("void");
    }
    before.is_as_before("libraries of a GPU");
}

/// The image's driver is used where it says that it is made for the host's, and is newer.
#[test]
fn a_newer_driver_of_the_image() {
    let (drivers, image) = (nvidia(), python());
    let root = image.root();
    let root = text(&root);
    image.directory("usr/local/cuda/compat");
    let path = image.at("usr/local/cuda/compat/libcuda.so.575.57.08");
    // asm: a note of NVIDIA's; the text's length is the assembler's to count.
    let note = |text: &str| {
        format!(
            "__asm__(\".section .note.cuda.fwd_compatibility,\\\"a\\\",@note\\n.long 19, 2f - 1f, 1\\n\
             .asciz \\\"NVIDIA Corporation\\\"\\n.balign 4\\n1: .ascii \\\"{text}\\\"\\n2: .balign 4\\n.text\\n\");\n\
             int which(void) {{ return 575; }}"
        )
    };
    let json = |drivers: &str| {
        format!(
            r#"{{\\\"Format\\\":1,\\\"CUDA Version\\\":\\\"12.9\\\",\\\"Driver\\\":[{drivers}],\\\"Device\\\":[1]}}"#
        )
    };
    image.link("libcuda.so.575.57.08", "usr/local/cuda/compat/libcuda.so.1");
    for (text_of_note, said, remark) in [
        (json("535,550,575"), "575", ""),
        (json("535,575"), "550", ""),
        ("no JSON".to_owned(), "550", "/usr/local/cuda/compat: its note cannot be read"),
    ] {
        library(&path, "libcuda.so.1", &note(&text_of_note));
        for who in everyone() {
            let command = [root, "/usr/bin/python3", "-c", &asks("libcuda.so.1")].map(str::to_owned);
            let line = || ["--device=nvidia.com/gpu=0".to_owned()].into_iter().chain(command.clone());
            drivers.run(Run::launch(*who, line())).run().prints(said);
            let plan =
                drivers.run(Run::launch(*who, ["plan".to_owned()].into_iter().chain(line()))).run().good();
            assert_eq!(
                plan.out().contains("made for the host's, 550.54.14, and newer"),
                said == "575",
                "{plan}"
            );
            assert!(plan.out().contains(remark), "{plan}");
        }
    }
    // Two of them tell nothing.
    image.file("usr/local/cuda/compat/libcuda.so.580.1", "");
    let line = ["--device=nvidia.com/gpu=0", root, "/usr/bin/python3", "-c", &asks("libcuda.so.1")];
    drivers.run(Run::launch(Who::User, line)).run().prints("550");
    // Nor does a directory that leads out of the image.
    image.remove("usr/local/cuda").link("/../../../var/tmp", "usr/local/cuda");
    drivers.run(Run::launch(Who::User, line)).run().prints("550");
}

#[test]
fn what_is_described_is_listed() {
    let drivers = example();
    drivers.write("run/nvidia.yaml", NVIDIA);
    let vendor = drivers.at("etc/vendor.json").display().to_string();
    let nvidia = drivers.at("run/nvidia.yaml").display().to_string();
    for who in everyone() {
        let outcome = drivers.list(*who, false);
        outcome.prints(&format!(
            "nvidia.com/gpu=0            {nvidia}\nnvidia.com/gpu=all          {nvidia}\n\
             vendor.com/device=myDevice  {vendor}\nvendor.com/device=other     {vendor}"
        ));
    }
    drivers.write("etc/bad.json", "{}");
    for who in everyone() {
        let outcome = drivers.list(*who, true);
        assert_eq!(outcome.code(), Some(1), "{outcome}");
        let listing: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
        assert_eq!(listing["devices"].as_array().unwrap().len(), 4, "{outcome}");
        assert_eq!(listing["devices"][0]["name"], "nvidia.com/gpu=0", "{outcome}");
        assert_eq!(listing["faults"][0]["path"], text(&drivers.at("etc/bad.json")), "{outcome}");
        outcome.says(&["bad.json: missing field `cdiVersion`"]);
    }
}

/// Each is refused by its own name, and nothing has run.
#[test]
fn descriptions_that_cannot_be_followed() {
    let (drivers, image) = (Drivers::new(), Throwaway::new());
    drivers.write("lib/file", "");
    let before = Host::now();
    let node = |rest: &str| format!(r#"{{"deviceNodes":[{{"path":"/opt/x",{rest}}}]}}"#);
    let mount = |from: &str, at: &str, rest: &str| {
        format!(r#"{{"mounts":[{{"hostPath":"{from}","containerPath":"{at}"{rest}}}]}}"#)
    };
    let table: &[(String, &str, &str)] = &[
        (node(r#""hostPath":"/dev/nope""#), "device-missing", "/dev/nope cannot be looked at: No such file"),
        (node(r#""hostPath":"LIB/file""#), "device-missing", "file is no device"),
        (node(r#""hostPath":"/dev""#), "device-missing", "/dev is no device"),
        (
            node(r#""hostPath":"/dev/zero","type":"c","major":195,"minor":0"#),
            "device-missing",
            "/dev/zero is the device c 1:5, and c 195:0 is described",
        ),
        (node(r#""hostPath":"/dev/zero","type":"b""#), "device-missing", "c 1:5, and b 0:0 is described"),
        (mount("LIB/nope", "/opt/x", ""), "device-missing", "nope cannot be looked at: No such file"),
        (
            mount("tmpfs", "/opt/x", r#","type":"tmpfs","options":["size=64k"]"#),
            "device-unsupported",
            "a file system of type \"tmpfs\" at /opt/x",
        ),
        (
            mount("LIB/file", "/opt/x", r#","options":["shared"]"#),
            "device-unsupported",
            "/opt/x with the option \"shared\"",
        ),
        (
            r#"{"hooks":[{"hookName":"createContainer","path":"/bin/vendor-hook","args":["vendor-hook","go"]}]}"#
                .to_owned(),
            "device-unsupported",
            "the hook `/bin/vendor-hook go` to be run, which is not known",
        ),
        (
            r#"{"netDevices":[{"hostInterfaceName":"lo","name":"eth0"}]}"#.to_owned(),
            "device-unsupported",
            "the interface lo should be called eth0",
        ),
        (
            r#"{"netDevices":[{"hostInterfaceName":"nope7","name":"nope7"}]}"#.to_owned(),
            "device-missing",
            "this host has no interface \"nope7\"",
        ),
        // The host's own directories are shown, and not written to.
        (mount("LIB/file", "/dev/nope/file", ""), "bind-target", "which is the host's"),
        (mount("LIB/file", "/", ""), "bind-target", "it leads to the root itself"),
        (mount("LIB/file", "/usr", ""), "bind-target", "/usr is a directory inside"),
        // Files that do not count at all.
        (mount("LIB/file", "/opt/../../etc/passwd", ""), "device-unknown", "\"/opt/../../etc/passwd\" holds `..`"),
        (mount("../file", "/opt/x", ""), "device-unknown", "\"../file\" is no absolute path"),
        (mount("LIB/file", "opt/x", ""), "device-unknown", "\"opt/x\" is no absolute path"),
        (r#"{"env":["PATH"]}"#.to_owned(), "device-unknown", "\"PATH\" is no NAME=VALUE"),
        (r#"{"surprise":true}"#.to_owned(), "device-unknown", "unknown field `surprise`"),
        (
            format!(r#"{{"env":[{}"A=1"]}}"#, r#""A=1","#.repeat(1_000_000)),
            "device-unknown",
            "env has 1000001 entries; at most 16384 are read",
        ),
    ];
    for (edits, code, why) in table {
        drivers.device(edits);
        for who in everyone() {
            let outcome = drivers.shell(*who, &image, "vendor.com/class=a", "echo ran");
            let outcome = outcome.refused(code, &[why]);
            assert!(outcome.err().contains("etc/one.json"), "{outcome}");
        }
    }
    before.is_as_before("devices that cannot be");
}

/// Links in the way stay inside of the image.
#[test]
fn links_of_the_image_lead_nowhere_else() {
    let (drivers, image) = (Drivers::new(), Throwaway::new());
    drivers.write("lib/file", "the driver's");
    let outside = drivers.at("lib").display().to_string();
    image.link("/../../../../etc", "opt").link(&outside, "usr/lib64");
    for at in ["/opt/new/file", "/usr/lib64/libx.so.1"] {
        drivers.device(&format!(r#"{{"mounts":[{{"hostPath":"LIB/file","containerPath":"{at}"}}]}}"#));
        for who in everyone() {
            let outcome = drivers.shell(*who, &image, "vendor.com/class=a", &format!("cat {at}"));
            outcome.prints("the driver's");
        }
    }
    assert!(!Path::new("/etc/new").exists() && !drivers.at("lib/libx.so.1").exists());
    assert!(!image.at("etc/new").exists());
}

/// YAML whose few bytes stand for gigabytes.
#[test]
fn bombs() {
    let (drivers, image) = (Drivers::new(), Throwaway::new());
    let level = |n: u32| format!("  a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(","));
    let bomb: String = (1..10).map(level).collect();
    let bomb = format!("annotations:\n  a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n{bomb}");
    let head = "cdiVersion: 1.0.0\nkind: vendor.com/class\n";
    let deep = format!("{head}annotations: {}{}\n", "{a: ".repeat(100_000), "}".repeat(100_000));
    for text in
        [format!("{head}{bomb}"), deep, "%".repeat(1 << 20), "- ".repeat(1 << 20), "\0".repeat(1 << 20)]
    {
        drivers.write("etc/bomb.yaml", &text);
        for who in everyone() {
            let outcome = drivers.shell(*who, &image, "vendor.com/class=a", "echo ran");
            outcome.refused("device-unknown", &["etc/bomb.yaml does not count: "]);
        }
    }
}

#[test]
fn a_device_that_may_not_be_opened() {
    if !is_root() {
        return;
    }
    let (drivers, image) = (Drivers::new(), Throwaway::new());
    // A node of null's, for the disk's group only.
    let node = drivers.at("lib/card");
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o660);
    let null = nix::sys::stat::makedev(1, 3);
    nix::sys::stat::mknod(&node, nix::sys::stat::SFlag::S_IFCHR, mode, null).unwrap();
    nix::unistd::chown(&node, None, Some(6.into())).unwrap();
    fs::set_permissions(&node, Permissions::from_mode(0o660)).unwrap();
    drivers.device(r#"{"deviceNodes":[{"path":"/opt/card","hostPath":"LIB/card"}],"additionalGids":[6,0]}"#);
    let who = Who::User.account();
    let why = format!(
        "lib/card may not be used: EACCES: Permission denied; it is root:disk with mode 0660, and your groups are {}",
        who.name
    );
    let outcome = drivers.shell(Who::User, &image, "vendor.com/class=a", "echo ran");
    outcome.refused("device-denied", &[&why, "add you to the group disk"]);
    let root = image.root();
    let line = ["plan", "--device=vendor.com/class=a", text(&root), "true"];
    let plan = drivers.run(Run::launch(Who::Root, line)).run().good();
    assert!(plan.out().contains("groups cannot be added to a process without privileges: 6\n"), "{plan}");
    // A device of memory that a description calls something else.
    let memory = drivers.at("lib/memory");
    nix::sys::stat::mknod(&memory, nix::sys::stat::SFlag::S_IFCHR, mode, nix::sys::stat::makedev(1, 1))
        .unwrap();
    drivers.device(r#"{"deviceNodes":[{"path":"/opt/card","hostPath":"LIB/memory"}]}"#);
    for who in everyone() {
        let outcome = drivers.shell(*who, &image, "vendor.com/class=a", "echo ran");
        outcome.refused("device-unsupported", &["lib/memory (c 1:1) is the host's memory"]);
    }
    // Descriptions that others can have written.
    fs::set_permissions(drivers.at("etc/one.json"), Permissions::from_mode(0o666)).unwrap();
    for who in everyone() {
        let outcome = drivers.shell(*who, &image, "vendor.com/class=a", "echo ran");
        outcome.refused(
            "device-unknown",
            &["one.json does not count: it can be written to by others (mode 0666)"],
        );
    }
}

/// A driver was updated, and its description was not.
#[test]
fn a_description_of_another_driver() {
    if !is_root() {
        return;
    }
    let (drivers, image) = (nvidia(), Throwaway::new());
    fs::remove_file(drivers.at("lib/libcuda.so.550.54.14")).unwrap();
    let loaded =
        "mount -t tmpfs none /sys/module; mkdir /sys/module/nvidia; echo 555.42 >/sys/module/nvidia/version";
    let root = image.root();
    for who in everyone() {
        let run = Run::launch(*who, ["--device=nvidia.com/gpu=0", text(&root), "true"]).prelude(loaded);
        let why = "libcuda.so.550.54.14 cannot be looked at: No such file or directory (os error 2); \
                   it is of the driver 550.54.14, and 555.42 is loaded";
        drivers.run(run).run().refused("device-missing", &[why, "nvidia-ctk cdi generate"]);
    }
}

#[test]
fn names_that_name_nothing() {
    let (drivers, image) = (example(), Throwaway::new());
    let root = image.root();
    let root = text(&root);
    for who in everyone() {
        for (name, code, why, cure) in [
            (
                "vendor.com/device=nope",
                "device-unknown",
                "is described nowhere in ",
                "vendor.com/device=myDevice",
            ),
            ("other.com/device=a", "device-unknown", "is described nowhere in ", "nvidia-ctk cdi generate"),
            ("myDevice", "usage", "is no name of a device", "vendor.com/class=name"),
            ("vendor.com/device", "usage", "is no name of a device", "vendor.com/class=name"),
            ("vendor.com/device=", "usage", "is no name of a device", "vendor.com/class=name"),
            ("../x/y=z", "usage", "is no name of a device", "vendor.com/class=name"),
        ] {
            drivers.shell(*who, &image, name, "echo ran").refused(code, &[why, cure]);
        }
        // The site's settings ask for devices too, and say so.
        let run = Run::launch(*who, [root, "true"]).env("HPC_LAUNCH_DEVICES", "vendor.com/device=no");
        drivers.run(run).run().refused("device-unknown", &["vendor.com/device=no (HPC_LAUNCH_DEVICES)"]);
    }
}
