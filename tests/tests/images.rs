//! Images of every format, as real tools make them, run; and what is made of layers is what others make of them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::Path;

use hpc_launch_tests::host::{self, Who, everyone, is_root};
use hpc_launch_tests::image::{Throwaway, directory};
use hpc_launch_tests::layout::{self, listing, oci, only_image, owned, podman, text, tool, unsquash};
use hpc_launch_tests::run::{Outcome, Run};

fn import(who: Who, store: &Path, source: &str, name: &str) -> Outcome {
    Run::launch(who, ["image", "import", "--store", text(store), source, name]).run()
}

/// The same solver in each format: under its launcher, as everyone, the same words.
#[test]
fn every_format_runs_the_ring() {
    let root = fs::canonicalize(host::image("bookworm-mpich")).unwrap();
    let squashfs = host::image("bookworm-mpich.sqfs");
    let dir = directory("/var/tmp");
    let at = |name: &str| dir.path().join(name);
    let mut formats = vec![("directory", text(&root).to_owned()), ("SquashFS", text(&squashfs).to_owned())];
    for ending in ["tar", "tar.gz", "tar.zst", "tar.xz"] {
        let file = at(&format!("root.{ending}"));
        layout::tar(&root, &file);
        formats.push((ending, text(&file).to_owned()));
    }
    tool("mkfs.erofs", &["--quiet", "-zlz4hc", text(&at("root.erofs")), text(&root)]);
    formats.push(("EROFS", text(&at("root.erofs")).to_owned()));
    layout::sif(&squashfs, &at("hand.sif"));
    formats.push(("SIF by hand", text(&at("hand.sif")).to_owned()));
    match layout::sif_of_apptainer(&root, &at("apptainer.sif")) {
        Some(()) => formats.push(("SIF of Apptainer", text(&at("apptainer.sif")).to_owned())),
        None => eprintln!("no Apptainer here: its SIF file is not tried"),
    }
    if is_root() {
        podman(dir.path(), &["import", "-q", "-c", "ENV SOLVER=ring", text(&at("root.tar")), "solver:1"]);
        for (format, name) in
            [("docker-archive", "docker.tar"), ("oci-archive", "oci.tar"), ("oci-dir", "oci")]
        {
            podman(
                dir.path(),
                &["save", "-q", "--format", format, "-o", text(&at(name)), "localhost/solver:1"],
            );
            layout::open(&at(name));
            formats.push((format, text(&at(name)).to_owned()));
        }
        tool("gzip", &["-1", "-k", text(&at("docker.tar"))]);
        formats.push(("docker-archive, compressed", text(&at("docker.tar.gz")).to_owned()));
        let (from, to) =
            (format!("oci:{}", text(&at("oci"))), format!("oci-archive:{}:s:1", text(&at("zstd.tar"))));
        tool("skopeo", &["copy", "-q", "--dest-compress-format", "zstd", &from, &to]);
        layout::open(&at("zstd.tar"));
        formats.push(("oci-archive with zstd", text(&at("zstd.tar")).to_owned()));
    }
    for who in everyone() {
        let store = owned(dir.path(), &format!("store-{who:?}"), *who);
        import(*who, &store, text(&root), "group/solver:1").good();
        formats.push(("name", "group/solver:1".to_owned()));
        for (format, image) in &formats {
            let run = Run::hydra(*who, 3, [image, "/opt/examples/ring"]).env("HPC_LAUNCH_STORE", &store);
            let outcome = run.run().good();
            assert_eq!(outcome.out(), "ring of 3 ranks: sum 3 correct\n", "{format}: {outcome}");
            // Made once, and that is said once.
            let is_archive =
                !matches!(*format, "directory" | "SquashFS" | "SIF by hand" | "SIF of Apptainer" | "name");
            let said = outcome.err().matches("making an image of it").count();
            assert_eq!(said, usize::from(is_archive), "{format}: {outcome}");
            let again = Run::hydra(*who, 3, [image, "/opt/examples/ring"])
                .env("HPC_LAUNCH_STORE", &store)
                .run()
                .good();
            assert_eq!(again.err(), "", "{format}: {again}");
            if *format == "SIF of Apptainer" {
                // Its scripts set PATH if a user of Apptainer's has said what to.
                let path = Run::launch(*who, [image, "sh", "-c", "echo $PATH"]).run().good();
                assert!(path.out().contains("/usr/bin"), "{path}");
            }
        }
        formats.pop();
        Run::launch(*who, ["image", "verify", "--store", text(&store)]).run().good();
    }
}

/// Layers of a test, unpacked by umoci and by us.
fn as_umoci(layers: &str) {
    if !is_root() {
        return;
    }
    let dir = directory("/var/tmp");
    let at = |name: &str| dir.path().join(name);
    oci(layers, &at("oci"));
    same_as_umoci(dir.path(), &format!("{}:test", text(&at("oci"))));
}

fn same_as_umoci(dir: &Path, image: &str) {
    let at = |name: &str| dir.join(name);
    tool("umoci", &["unpack", "--image", image, text(&at("umoci"))]);
    import(Who::Root, &at("store"), image, "x").good();
    unsquash(&only_image(&at("store")), &at("ours"));
    let (theirs, ours) = (listing(&at("umoci/rootfs")), listing(&at("ours")));
    let only = |a: &[String], b: &[String]| a.iter().filter(|l| !b.contains(l)).cloned().collect::<Vec<_>>();
    assert_eq!(only(&ours, &theirs), only(&theirs, &ours), "left ours, right umoci's");
    assert!(!ours.is_empty());
}

#[test]
fn whiteouts_hide_what_is_below() {
    as_umoci(
        "layers = [
  [{'name': 'd', 'type': 'dir'}, {'name': 'd/a', 'data': 'a'}, {'name': 'd/b', 'data': 'b'}, {'name': 'f', 'data': 'f'},
   {'name': 'e', 'type': 'dir'}, {'name': 'e/s', 'type': 'dir'}, {'name': 'e/s/x', 'data': 'x'}],
  [{'name': 'd/.wh.a'}, {'name': '.wh.f'}, {'name': 'e/.wh.s'}],
  [{'name': 'e/s', 'type': 'dir'}, {'name': 'e/s/y', 'data': 'y'}]]",
    );
}

#[test]
fn opaque_directories_hide_all_below_and_nothing_beside() {
    as_umoci(
        "layers = [
  [{'name': 'd', 'type': 'dir'}, {'name': 'd/a', 'data': 'a'}, {'name': 'd/s', 'type': 'dir'}, {'name': 'd/s/x', 'data': 'x'}],
  [{'name': 'd', 'type': 'dir', 'mode': 0o700}, {'name': 'd/.wh..wh..opq'}, {'name': 'd/new', 'data': 'new'}],
  [{'name': 'd/late', 'data': 'late'}]]",
    );
}

#[test]
fn hard_links_over_layers() {
    as_umoci(
        "layers = [
  [{'name': 'a', 'data': 'one'}, {'name': 'b', 'type': 'link', 'linkname': 'a'}, {'name': 'd', 'type': 'dir'}],
  [{'name': 'd/c', 'type': 'link', 'linkname': 'b'}, {'name': 'a', 'data': 'other'}],
  [{'name': '.wh.b'}]]",
    );
}

#[test]
fn types_are_replaced() {
    as_umoci(
        "layers = [
  [{'name': 'a', 'data': 'file'}, {'name': 'b', 'type': 'dir'}, {'name': 'b/x', 'data': 'x'}, {'name': 'c', 'type': 'symlink', 'linkname': 'a'},
   {'name': 'l', 'type': 'symlink', 'linkname': 'b'}],
  [{'name': 'a', 'type': 'dir'}, {'name': 'a/in', 'data': 'in'}, {'name': 'b', 'type': 'symlink', 'linkname': 'a'}, {'name': 'c', 'data': 'now'},
   {'name': 'l', 'type': 'dir'}, {'name': 'p', 'type': 'fifo'}],
  [{'name': 'b', 'data': 'file again'}]]",
    );
}

#[test]
fn paths_lead_through_links() {
    as_umoci(
        "layers = [
  [{'name': 'usr', 'type': 'dir'}, {'name': 'usr/lib', 'type': 'dir'}, {'name': 'usr/lib/a', 'data': 'a'}, {'name': 'lib', 'type': 'symlink', 'linkname': 'usr/lib'},
   {'name': 'abs', 'type': 'symlink', 'linkname': '/usr/lib'}, {'name': 'out', 'type': 'symlink', 'linkname': '../../usr'}],
  [{'name': 'lib/b', 'data': 'b'}, {'name': 'abs/c', 'data': 'c'}, {'name': 'out/d', 'data': 'd'}],
  [{'name': 'lib/.wh.a'}, {'name': 'lib/b', 'data': 'newer'}]]",
    );
}

/// What the paths alone say is wrong here: a file seems hidden by one above that lies elsewhere.
#[test]
fn what_links_make_of_the_same_path() {
    as_umoci(
        "layers = [
  [{'name': 'b', 'type': 'dir'}, {'name': 'a', 'type': 'symlink', 'linkname': 'b'}, {'name': 'a/f', 'data': 'below'}],
  [{'name': '.wh.a'}, {'name': 'a', 'type': 'dir'}],
  [{'name': 'a/f', 'data': 'above'}]]",
    );
}

#[test]
fn names_modes_owners_times_and_attributes() {
    as_umoci(
        "n = 'n' * 200
layers = [
  [{'name': n, 'type': 'dir'}, {'name': n + '/' + n, 'data': 'long'}, {'name': 'u\u{e4}\u{2603}', 'data': 'utf8'},
   {'name': 'su', 'data': 'x', 'mode': 0o4755}, {'name': 'sg', 'data': 'x', 'mode': 0o2755}, {'name': 'tmp', 'type': 'dir', 'mode': 0o1777},
   {'name': 'shared', 'type': 'dir', 'mode': 0o2775}, {'name': 'own', 'data': 'x', 'uid': 12345, 'gid': 54321, 'mtime': 1},
   {'name': 'big', 'data': bytes(range(256)) * 4096}, {'name': 'zeros', 'data': b'\\0' * 1000000}, {'name': 'mixed', 'data': b'\\0' * 300000 + b'x' * 200000 + b'\\0' * 131072},
   {'name': 'empty', 'data': ''}, {'name': 'longlink', 'type': 'symlink', 'linkname': 'x' * 300},
   {'name': 'xattr', 'data': 'x', 'pax_headers': {'SCHILY.xattr.user.a': 'b'}}]]",
    );
}

#[test]
fn directories_of_many_files() {
    as_umoci(
        "layers = [[{'name': 'd', 'type': 'dir'}] + [{'name': 'd/file%05d' % i, 'data': str(i)} for i in range(3000)]
  + [{'name': 'd/' + 'x' * 100 + str(i), 'type': 'symlink', 'linkname': str(i)} for i in range(1000)],
  [{'name': 'd/.wh.file%05d' % i} for i in range(0, 3000, 7)]]",
    );
}

/// A whole Debian system in one layer, another MPI's in the next, removals in the third.
#[test]
fn a_real_system_in_layers() {
    if !is_root() {
        return;
    }
    let dir = directory("/var/tmp");
    let layout = format!("{}:test", dir.path().join("oci").display());
    let real = |name: &str| fs::canonicalize(host::image(name)).unwrap();
    tool("umoci", &["init", "--layout", text(&dir.path().join("oci"))]);
    tool("umoci", &["new", "--image", &layout]);
    tool("umoci", &["insert", "--image", &layout, text(&real("bookworm-mpich")), "/"]);
    tool(
        "umoci",
        &["insert", "--image", &layout, text(&real("bookworm-openmpi").join("usr/lib")), "/usr/lib"],
    );
    tool("umoci", &["insert", "--image", &layout, "--whiteout", "/usr/share"]);
    let config = [
        "config",
        "--image",
        &layout,
        "--architecture",
        if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
    ];
    tool("umoci", &config);
    same_as_umoci(dir.path(), &layout);
}

/// The kernel reads every byte of what we have written, and finds every name.
#[test]
fn the_kernel_reads_what_is_written() {
    if !is_root() {
        return;
    }
    let image = Throwaway::new();
    image.directory("many");
    for i in 0..2000 {
        image.file(format!("many/{i:04}-{}", "n".repeat(i % 150)), vec![b'x'; i]);
    }
    image.file("large", vec![7; 3 << 20]).file("hole", [vec![0; 1 << 20], vec![1; 5]].concat());
    for compression in ["zstd", "lz4"] {
        let dir = directory("/var/tmp");
        let store = dir.path().join("store");
        let root = image.root();
        let arguments =
            ["image", "import", "--compression", compression, "--store", text(&store), text(&root), "x"];
        Run::launch(Who::Root, arguments).run().good();
        let (file, to) = (only_image(&store), dir.path().join("mnt"));
        fs::create_dir(&to).unwrap();
        let script = format!(
            "mount -t squashfs -o loop,ro {} {} && cd {} && find . -type f | sort | xargs -d '\\n' sha256sum",
            text(&file),
            text(&to),
            text(&to)
        );
        let ours = tool("unshare", &["-m", "sh", "-c", &script]).stdout;
        let theirs = tool(
            "sh",
            &["-c", &format!("cd {} && find . -type f | sort | xargs -d '\\n' sha256sum", text(&root))],
        )
        .stdout;
        assert_eq!(String::from_utf8_lossy(&ours), String::from_utf8_lossy(&theirs));
    }
}
