//! Signatures of SIF files: made by Apptainer and by gpg, required, and everything that they do not cover refused.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hpc_launch_tests::host::{self, Who, everyone, is_root, launcher};
use hpc_launch_tests::image::{Throwaway, directory};
use hpc_launch_tests::layout;
use hpc_launch_tests::run::{PATH, Run};
use hpc_launch_tests::signed::{Bytes, How, Keys, apptainer};
use tempfile::TempDir;

const RECIPE: u32 = 0x4001;
const PARTITION: u32 = 0x4004;
const LABELS: u32 = 0x4003;
const SIGNATURE: u32 = 0x4005;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A small image as a SIF file, signed by gpg; the key ring with that key; the keys.
struct Made {
    dir: TempDir,
    image: Throwaway,
    sif: PathBuf,
    ring: PathBuf,
    keys: Keys,
    key: String,
}

impl Made {
    fn new() -> Made {
        let dir = directory("/var/tmp");
        let image = Throwaway::new();
        let (sif, keys) = (dir.path().join("x.sif"), Keys::new(dir.path()));
        layout::sif(&image.squash(), &sif);
        let key = keys.make("signer", &[]);
        let ring = keys.ring(&dir.path().join("ring"), &[&key]);
        keys.sign(&sif, &How::usual(&key));
        Made { dir, image, sif, ring, keys, key }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same image without a signature.
    fn unsigned(&self, name: &str) -> PathBuf {
        let file = self.at(name);
        layout::sif(&self.image.beside().join("image.sqfs"), &file);
        file
    }

    /// The same image, signed in this way.
    fn signed(&self, name: &str, how: &How<'_>) -> PathBuf {
        let file = self.unsigned(name);
        self.keys.sign(&file, how);
        file
    }

    /// Under the requirement, with this test's key ring.
    fn run(&self, who: Who, image: &Path) -> Run {
        Run::launch(who, ["--require-signature", text(image), "sh", "-c", "echo runs"])
            .env("APPTAINER_KEYSDIR", &self.ring)
    }

    /// A store that this user can write to.
    fn store(&self, who: Who) -> PathBuf {
        let path = self.at(&format!("store-{who:?}"));
        fs::create_dir_all(&path).unwrap();
        if is_root() {
            let account = who.account();
            std::os::unix::fs::chown(&path, Some(account.uid), Some(account.gid)).unwrap();
        }
        path
    }
}

/// A file signed by Apptainer itself, and the directory of its keys; `None` where there is none.
fn by_apptainer(dir: &Path, file: &Path) -> Option<(PathBuf, String)> {
    apptainer(dir, &["version"])?;
    let keys = dir.join("keys");
    if !keys.exists() {
        let who = ["--name", "A Tester", "--email", "a@example.org", "--comment", "test", "--password", ""];
        let how = ["--push=false", "--bit-length", "2048"];
        apptainer(dir, &[&["key", "newpair"][..], &who, &how].concat())?;
    }
    apptainer(dir, &["sign", text(file)])?;
    layout::open(file);
    let said = apptainer(dir, &["verify", text(file)])?;
    // It closes the directory each time.
    layout::open(&keys);
    let said = said.out() + &said.err();
    let fingerprint = said.lines().find_map(|line| line.split_once("Fingerprint:")).expect("its fingerprint");
    Some((keys, fingerprint.1.trim().to_owned()))
}

/// A real solver under mpirun, signed by Apptainer and by gpg.
#[test]
fn what_is_signed_runs() {
    let dir = directory("/var/tmp");
    let squashfs = host::image("bookworm-openmpi.sqfs");
    let keys = Keys::new(dir.path());
    let key = keys.make("signer", &[]);
    let ring = keys.ring(&dir.path().join("ring"), &[&key]);
    let ours = dir.path().join("gpg.sif");
    layout::sif(&squashfs, &ours);
    let theirs = dir.path().join("apptainer.sif");
    fs::copy(&ours, &theirs).unwrap();
    keys.sign(&ours, &How::usual(&key));
    let mut files = vec![(ours, ring, key)];
    match by_apptainer(dir.path(), &theirs) {
        Some((ring, key)) => files.push((theirs, ring, key)),
        None => eprintln!("no Apptainer here: its signatures are not tried"),
    }
    for who in everyone() {
        for (sif, ring, key) in &files {
            let run = |run: Run| run.env("APPTAINER_KEYSDIR", ring).run().good();
            let line = ["--require-signature", text(sif), "/opt/examples/ring"];
            let outcome = run(Run::mpirun(*who, 3, line));
            assert_eq!(outcome.out(), "ring of 3 ranks: sum 3 correct\n", "{outcome}");
            let plan = run(Run::launch(*who, ["plan", "--require-signature", text(sif), "true", "--json"]));
            assert!(plan.out().contains("\"signed_by\": [") && plan.out().contains(key.as_str()), "{plan}");
            let plan = run(Run::launch(*who, ["plan", "--require-signature", text(sif), "true"]));
            assert!(plan.out().contains(&format!(", signed by {key})")), "{plan}");
            // Nobody asked.
            let plan = run(Run::launch(*who, ["plan", text(sif), "true"]));
            assert!(!plan.out().contains(key.as_str()), "{plan}");
        }
    }
}

/// With all the objects that Apptainer gives an image that it builds.
#[test]
fn what_apptainer_built_and_signed_runs() {
    let (dir, image) = (directory("/var/tmp"), Throwaway::new());
    let sif = dir.path().join("built.sif");
    if layout::sif_of_apptainer(&image.root(), &sif).is_none() {
        eprintln!("no Apptainer here");
        return;
    }
    for who in everyone() {
        let line = ["--require-signature", text(&sif), "/bin/sh", "-c", "echo runs"];
        Run::launch(*who, line).run().refused("image-unsigned", &["is not signed (--require-signature"]);
    }
    let (ring, _) = by_apptainer(dir.path(), &sif).unwrap();
    for who in everyone() {
        let line = ["--require-signature", text(&sif), "/bin/sh", "-c", "echo runs"];
        Run::launch(*who, line).env("APPTAINER_KEYSDIR", &ring).run().prints("runs");
    }
    // Its last object is the image, its first the recipe: a byte of that counts too.
    let mut bytes = Bytes::of(&sif);
    let recipe = bytes.data(bytes.descriptor(RECIPE));
    bytes.flip(recipe).write(&sif);
    let line = ["--require-signature", text(&sif), "true"];
    let outcome = Run::launch(Who::Root, line).env("APPTAINER_KEYSDIR", &ring).run();
    outcome.refused("signature-invalid", &["object 1 was changed"]);
}

/// Whatever is changed behind a signature, by anyone, is told; the same is asked of Apptainer's signatures.
#[test]
fn what_was_changed_is_refused() {
    let made = Made::new();
    let mut files = vec![(made.sif.clone(), made.ring.clone())];
    let theirs = made.unsigned("apptainer.sif");
    if let Some((ring, _)) = by_apptainer(made.dir.path(), &theirs) {
        files.push((theirs, ring));
    }
    type Change = fn(&mut Bytes);
    let changes: [(&str, &str, Change); 11] = [
        ("signature-invalid", "(the root file system) was changed", |f| {
            let at = f.data(f.descriptor(PARTITION));
            f.flip(at + 5000);
        }),
        ("signature-invalid", "object 1 was changed", |f| {
            let at = f.data(f.descriptor(LABELS));
            f.flip(at + 40);
        }),
        ("signature-invalid", "the descriptor of object 2 (the root file system) was changed", |f| {
            // Its owner.
            let at = f.descriptor(PARTITION);
            f.flip(at + 57);
        }),
        ("signature-invalid", "the descriptor of object 1 was changed", |f| {
            // Its name.
            let at = f.descriptor(LABELS);
            f.flip(at + 73);
        }),
        ("signature-invalid", "its header was changed", |f| {
            f.flip(20);
        }),
        ("signature-invalid", "names another key", |f| {
            let at = f.descriptor(SIGNATURE);
            f.flip(at + 205);
        }),
        ("signature-invalid", "is wrong: the key ", |f| {
            // A digit of a digest.
            let at = f.data(f.descriptor(SIGNATURE));
            let digest = f.0[at..].windows(7).position(|w| w == b"sha256:").unwrap();
            f.flip(at + digest + 7);
        }),
        ("image-unsigned", "x.sif is not signed (", |f| {
            let at = f.descriptor(SIGNATURE);
            f.flip(at + 4);
        }),
        (
            "image-unsigned",
            "is not signed as a whole: its signature (object 3) does not cover object 40",
            |f| {
                f.add(1);
            },
        ),
        ("image-unsigned", "is not signed as a whole: no signature covers object 40", |f| {
            f.add(2);
        }),
        ("image-unsigned", "object 40 belongs to no group", |f| {
            f.add(0);
        }),
    ];
    for (sif, ring) in &files {
        for (number, (code, why, change)) in changes.iter().enumerate() {
            let mut bytes = Bytes::of(sif);
            change(&mut bytes);
            let file = made.at(&format!("{number}-x.sif"));
            bytes.write(&file);
            for who in everyone() {
                let run = |run: Run| run.env("APPTAINER_KEYSDIR", ring).run();
                run(made.run(*who, &file)).refused(code, &[why, text(&file)]);
                let line = ["--require-signature", text(&file), "sh", "-c", "echo runs"];
                if number == 0 {
                    let outcome = run(Run::mpirun(*who, 2, line)).says(&[&format!("[{code}] "), why]);
                    assert_eq!(outcome.err().matches("hpc-launch: [").count(), 1, "{outcome}");
                    let check = run(Run::launch(*who, ["check", line[0], line[1], "true"]));
                    assert_eq!(check.code(), Some(125), "{check}");
                    assert!(check.out().contains(why), "{check}");
                }
                // Without the requirement nothing is compared: a byte in its times is no reason.
                if number == 2 {
                    Run::launch(*who, &line[1..]).run().prints("runs");
                }
            }
            fs::remove_file(&file).unwrap();
        }
    }
}

/// Keys: unknown, expired, revoked; key rings: none, empty, armored, the configuration's; Singularity's place.
#[test]
fn whose_key_counts() {
    let made = Made::new();
    let second = made.keys.make("second", &[]);
    let others = made.keys.ring(&made.at("others"), &[&second]);
    let expired = made.keys.make("expired", &["--faked-system-time", "20200101T000000"]);
    let by_expired = made
        .signed("expired.sif", &How { gpg: "--faked-system-time 20200101T100000", ..How::usual(&expired) });
    let renewed = made
        .signed("renewed.sif", &How { gpg: "--faked-system-time 20200101T100000", ..How::usual(&expired) });
    made.keys.sign(&renewed, &How::usual(&made.key));
    let revoked = made.keys.make("revoked", &[]);
    let by_revoked = made.signed("revoked.sif", &How::usual(&revoked));
    made.keys.revoke(&revoked);
    let all = made.keys.ring(&made.at("all"), &[&made.key, &second, &expired, &revoked]);
    let armored = made.at("armored.asc");
    layout::tool(
        "gpg",
        &["--batch", "--enarmor", "--output", text(&armored), text(&made.ring.join("pgp-public"))],
    );
    let armor = fs::read_to_string(&armored).unwrap();
    fs::write(&armored, armor.replace("ARMORED FILE", "PUBLIC KEY BLOCK")).unwrap();
    layout::open(&armored);
    let twice = made.signed("twice.sif", &How::usual(&second));
    made.keys.sign(&twice, &How::usual(&made.key));
    let empty = made.at("empty");
    fs::create_dir(&empty).unwrap();
    fs::write(empty.join("pgp-public"), "").unwrap();
    layout::open(&empty);
    for who in everyone() {
        let with = |ring: &Path, sif: &Path| made.run(*who, sif).env("APPTAINER_KEYSDIR", ring).run();
        with(&all, &made.sif).prints("runs");
        let pull = format!("apptainer key pull {}", made.key);
        let unknown = format!("is signed with the key {}, which is in no key ring: ", made.key);
        with(&others, &made.sif).refused("signature-key", &[&unknown, &pull, text(&others)]);
        with(&all, &by_expired).refused("signature-key", &["has expired", &expired[24..]]);
        // Signed anew, as that says.
        with(&all, &renewed).prints("runs");
        with(&all, &by_revoked).refused("signature-key", &["was revoked by its owner", &revoked[24..]]);
        // One of two is enough; both are told.
        with(&others, &twice).prints("runs");
        let line = ["plan", "--require-signature", text(&twice), "true"];
        let plan = Run::launch(*who, line).env("APPTAINER_KEYSDIR", &all).run().good();
        assert!(plan.out().contains(&format!("signed by {second} and {}", made.key)), "{plan}");

        let none = with(&empty, &made.sif);
        none.refused("key-ring", &["pgp-public (empty)", "/etc/apptainer/global-pgp-public (missing)"]);
        let home =
            Run::launch(*who, ["--require-signature", text(&made.sif), "true"]).env("HOME", &empty).run();
        let parts = [".apptainer/keys/pgp-public (missing)", ".singularity/sypgp/pgp-public (missing)"];
        home.refused(
            "key-ring",
            &parts.map(|p| format!("{}/{p}", empty.display())).each_ref().map(String::as_str),
        );
        let singularity = made.run(*who, &made.sif).env("APPTAINER_KEYSDIR", &empty);
        singularity.env("SINGULARITY_SYPGPDIR", &made.ring).run().prints("runs");

        let configured = |ring: &str| made.run(*who, &made.sif).env("HPC_LAUNCH_KEYRING", ring).run();
        configured(text(&all.join("pgp-public"))).prints("runs");
        // What is configured is used instead of the usual ones.
        configured(text(&others.join("pgp-public"))).refused("signature-key", &[&unknown]);
        configured(text(&armored)).refused("key-ring", &["armored", "HPC_LAUNCH_KEYRING"]);
        configured("/nonexistent/ring").refused("key-ring", &["/nonexistent/ring", "missing"]);
        configured("relative").refused("config-invalid", &["keyring: relative is no absolute path"]);
    }
}

/// Signatures of other kinds, and of messages that are none.
#[test]
fn other_signatures() {
    let made = Made::new();
    let legacy = "'SIFHASH:\\n' + hashlib.sha256(data).hexdigest()";
    for (number, (gpg, words, code, why)) in [
        ("", legacy, "image-unsigned", "is a legacy signature, which covers neither header nor descriptors"),
        (
            "",
            "'RAW:{\"payloadType\":\"application/vnd.sylabs.sif-metadata+json\"}'",
            "image-unsigned",
            "in a DSSE envelope",
        ),
        ("", "'RAW:hello'", "image-unsigned", "is a signature of no known form"),
        ("", "'RAW:-----BEGIN PGP SIGNED MESSAGE-----\\n\\n{}\\n-----BEGIN PGP SIGNATURE-----\\n\\nAAAA\\n-----END PGP SIGNATURE-----'", "gpgv-failed", "gpgv does not say whether"),
        ("", "'not JSON'", "signature-invalid", "cannot be understood"),
        ("", "json.dumps(all).replace('sha256', 'md5')", "signature-invalid", "a digest of no known kind"),
        ("", "json.dumps({**all, 'objects': all['objects'][:1]})", "image-unsigned", "does not cover object 2 (the root file system)"),
        ("--digest-algo SHA1", "json.dumps(all)", "signature-invalid", "no longer safe"),
    ]
    .into_iter()
    .enumerate()
    {
        let sif = made.signed(&format!("{number}.sif"), &How { key: &made.key, gpg, text: words });
        for who in everyone() {
            let outcome = made.run(*who, &sif).run();
            let said = outcome.refusal().unwrap_or_default();
            assert!(said.starts_with(code), "{why}: {outcome}");
            outcome.refused(&said, &[why]);
        }
    }
    // Digests of other lengths, as other signers write them.
    let sha512 = "json.dumps({**all, 'header': {'digest': 'sha512:' + hashlib.sha512(bytes(f[:45]) + bytes(f[48:64])).hexdigest()}})";
    let sif = made.signed("sha512.sif", &How { text: sha512, ..How::usual(&made.key) });
    made.run(Who::User, &sif).run().prints("runs");
}

/// gpgv is missing, or is something else.
#[test]
fn without_gpgv() {
    let made = Made::new();
    let fake = made.at("bin");
    fs::create_dir(&fake).unwrap();
    fs::write(fake.join("gpgv2"), "#!/bin/sh\necho 'gpgv: invalid option' >&2\nexit 2\n").unwrap();
    fs::set_permissions(fake.join("gpgv2"), fs::Permissions::from_mode(0o755)).unwrap();
    layout::open(&fake);
    for who in everyone() {
        let path = format!("{}:{PATH}", fake.display());
        let outcome = made.run(*who, &made.sif).env("PATH", path).run();
        outcome.refused("gpgv-failed", &["gpgv: invalid option", "GnuPG 2.2"]);
        // A site's PATH for batch jobs may be short.
        let line = ["env", "PATH=/nonexistent", text(launcher()), "--require-signature", text(&made.sif)];
        let run = Run::command(*who, [&line[..], &["/bin/sh", "-c", "echo runs"]].concat());
        run.env("APPTAINER_KEYSDIR", &made.ring).run().prints("runs");
        if is_root() {
            let run = made.run(*who, &made.sif).prelude("mount --bind /dev/null /usr/bin/gpgv");
            run.run().refused("gpgv-missing", &["only gpgv can verify signatures", "package gpgv"]);
            // Nobody asked for it.
            Run::launch(*who, [text(&made.sif), "sh", "-c", "echo runs"])
                .prelude("mount --bind /dev/null /usr/bin/gpgv")
                .run()
                .prints("runs");
        }
    }
}

/// Other formats have no signatures.
#[test]
fn other_formats() {
    let made = Made::new();
    let root = made.image.root();
    let squashfs = made.image.beside().join("image.sqfs");
    let tar = made.at("root.tar");
    layout::tar(&root, &tar);
    for who in everyone() {
        let store = made.store(*who);
        for (image, why) in [
            (root.clone(), "it is a directory, and only SIF files have signatures"),
            (squashfs.clone(), "it is a SquashFS file"),
            (tar.clone(), "it is an archive"),
            ("docker://registry.invalid/x:1".into(), "it is an image of a registry"),
        ] {
            let run = made.run(*who, &image).env("HPC_LAUNCH_STORE", &store).run();
            run.refused("image-unsigned", &["is not signed: ", why, "(--require-signature requires it)"]);
            let line = ["image", "import", "--require-signature", "--store", text(&store), text(&image), "x"];
            let line = match text(&image).starts_with("docker:") {
                true => vec!["image", "pull", "--require-signature", "--store", text(&store), text(&image)],
                false => line.to_vec(),
            };
            Run::launch(*who, line).run().refused("image-unsigned", &[why]);
        }
        assert!(
            fs::read_dir(store.join("images")).map_or(true, |mut all| all.next().is_none()),
            "something was made"
        );
    }
}

/// The site requires signatures: nobody undoes that; whoever wants may ask for them.
#[test]
fn the_sites_requirement_stays() {
    if !is_root() {
        return;
    }
    let made = Made::new();
    let unsigned = made.unsigned("unsigned.sif");
    let etc = made.at("etc");
    fs::create_dir_all(etc.join("hpc-launch")).unwrap();
    let ring = made.ring.join("pgp-public");
    let config =
        format!("require_signature = true\nkeyring = ['{}']\nlocked = ['keyring']\n", ring.display());
    fs::write(etc.join("hpc-launch/config.toml"), config).unwrap();
    let prelude = format!("mount -t overlay -o lowerdir={}:/etc none /etc", etc.display());
    let own = made.at("own");
    fs::create_dir_all(own.join("hpc-launch")).unwrap();
    fs::write(own.join("hpc-launch/config.toml"), "require_signature = false\n").unwrap();
    layout::open(made.dir.path().join("own").as_path());
    for who in everyone() {
        let run = |line: &[&str]| Run::launch(*who, line).prelude(&prelude);
        let by_site = ["is not signed (/etc/hpc-launch/config.toml requires it)"];
        run(&[text(&unsigned), "true"]).run().refused("image-unsigned", &by_site);
        run(&[text(&made.sif), "sh", "-c", "echo runs"]).run().prints("runs");
        let locked = "sets require_signature, which /etc/hpc-launch/config.toml locks";
        let undone = run(&[text(&unsigned), "true"]).env("HPC_LAUNCH_REQUIRE_SIGNATURE", "0").run();
        undone.refused("config-locked", &["HPC_LAUNCH_REQUIRE_SIGNATURE ", locked]);
        let undone = run(&[text(&unsigned), "true"]).env("XDG_CONFIG_HOME", &own).run();
        undone.refused("config-locked", &["own/hpc-launch/config.toml ", locked]);
        let ring = run(&[text(&made.sif), "true"]).env("HPC_LAUNCH_KEYRING", "/x").run();
        ring.refused("config-locked", &["HPC_LAUNCH_KEYRING sets keyring"]);
        let shown = run(&["config"]).run().good();
        let line =
            shown.out().lines().find(|l| l.starts_with("require_signature ")).map(str::to_owned).unwrap();
        assert!(line.contains(" true ") && line.ends_with("# /etc/hpc-launch/config.toml"), "{line}");
        // Where the site says nothing, a user may ask, and stop asking.
        let asked =
            Run::launch(*who, [text(&unsigned), "true"]).env("HPC_LAUNCH_REQUIRE_SIGNATURE", "1").run();
        asked.refused("image-unsigned", &["(HPC_LAUNCH_REQUIRE_SIGNATURE requires it)"]);
        Run::launch(*who, [text(&unsigned), "true"]).env("XDG_CONFIG_HOME", &own).run().good();
    }
}

/// An import remembers whose signature was verified; only such an image of a store runs where one is required.
#[test]
fn what_was_imported_signed_runs_by_its_name() {
    let made = Made::new();
    for who in everyone() {
        let store = made.store(*who);
        let image = |line: &[&str]| {
            let line = [&["image"], line, &["--store", text(&store)]].concat();
            Run::launch(*who, line).env("APPTAINER_KEYSDIR", &made.ring).run()
        };
        let run = |name: &str| made.run(*who, Path::new(name)).env("HPC_LAUNCH_STORE", &store).run();
        // Nobody asked: nobody looked.
        image(&["import", text(&made.sif), "plain"]).good();
        assert!(!image(&["inspect", "plain"]).good().out().contains("signed_by"));
        run("plain").refused("image-unsigned", &["plain is not signed", "image import --require-signature"]);
        let unsigned = made.unsigned(&format!("unsigned-{who:?}.sif"));
        image(&["import", "--require-signature", text(&unsigned), "other"])
            .refused("image-unsigned", &["is not signed"]);
        image(&["inspect", "other"]).refused("image-missing", &["other"]);
        // The same bytes are there already: now it is known whose they are.
        image(&["import", "--require-signature", text(&made.sif), "signed:1"]).good();
        let inspected = image(&["inspect", "signed:1"]).good();
        assert!(inspected.out().contains("signed_by") && inspected.out().contains(&made.key), "{inspected}");
        run("signed:1").prints("runs");
        let line = ["plan", "--require-signature", "--store", text(&store), "signed:1", "true", "--json"];
        let plan = Run::launch(*who, line).run().good();
        assert!(plan.out().contains(&made.key), "{plan}");
        image(&["verify"]).good();
        // By its path, what lies beside it is not believed: anybody could have written it.
        let found = inspected.out();
        let file = found.lines().find_map(|l| l.trim().strip_prefix("\"file\": \"")).unwrap();
        let file = Path::new(file.trim_end_matches("\","));
        run(text(file)).refused("image-unsigned", &["say its name there"]);
    }
}

/// A copy on the node is one of what was verified.
#[test]
fn a_copy_on_the_node_is_signed_too() {
    let made = Made::new();
    for who in everyone() {
        let cache = made.store(*who).join("cache");
        let line = ["--cache", "node", "--require-signature"];
        let run = |file: &Path| {
            let line = [&line[..], &[text(file), "sh", "-c", "echo runs"]].concat();
            let run = Run::launch(*who, line).env("HPC_LAUNCH_NODE_CACHE", &cache);
            run.env("APPTAINER_KEYSDIR", &made.ring).run()
        };
        run(&made.sif).prints("runs");
        run(&made.sif).prints("runs");
        let mut bytes = Bytes::of(&made.sif);
        let at = bytes.data(bytes.descriptor(PARTITION)) + 5000;
        bytes.flip(at).write(&made.at("changed.sif"));
        run(&made.at("changed.sif")).refused("signature-invalid", &["was changed"]);
        let plan = Run::launch(*who, [&["plan"], &line[..], &[text(&made.sif), "true"]].concat());
        let plan =
            plan.env("HPC_LAUNCH_NODE_CACHE", &cache).env("APPTAINER_KEYSDIR", &made.ring).run().good();
        assert!(plan.out().contains(&format!(", signed by {}", made.key)), "{plan}");
    }
}

/// What is at the path once the signatures have been verified may be something else: it is not what runs.
#[test]
fn what_was_verified_is_what_is_mounted() {
    let made = Made::new();
    made.image.file("which", "another");
    let another = made.at("another.sif");
    layout::sif(&made.image.squash(), &another);
    let bin = made.at("bin");
    fs::create_dir(&bin).unwrap();
    let script = |does: &str| {
        fs::write(bin.join("gpgv2"), format!("#!/bin/sh\n{does}\nexec /usr/bin/gpgv \"$@\"\n")).unwrap();
        fs::set_permissions(bin.join("gpgv2"), fs::Permissions::from_mode(0o755)).unwrap();
    };
    layout::open(&bin);
    for who in everyone() {
        let own = made.store(*who);
        let run = |name: &str, does: &str| {
            let place = own.join(name);
            for (directory, file) in [("here", &made.sif), ("other", &another)] {
                fs::create_dir_all(place.join(directory)).unwrap();
                fs::copy(file, place.join(directory).join("x.sif")).unwrap();
            }
            layout::tool("chmod", &["-R", "a+rwX", text(&place)]);
            script(&format!("cd {} && {does}", place.display()));
            let file = place.join("here/x.sif");
            let line = ["--require-signature", text(&file), "sh", "-c", "test -e /which && cat /which"];
            let run = Run::launch(*who, line).env("PATH", format!("{}:{PATH}", bin.display()));
            run.env("APPTAINER_KEYSDIR", &made.ring).run()
        };
        // The directory's name is given to another: the file that was verified is held.
        let outcome = run("renamed", "mv here away && mv other here");
        assert_eq!((outcome.out().as_str(), outcome.code()), ("", Some(1)), "{outcome}");
        assert_eq!(outcome.err(), "", "{outcome}");
        let changed = "was changed while its signatures were being verified";
        run("replaced", "mv other/x.sif here/x.sif").refused("signature-invalid", &[changed]);
        run("written", "printf x | dd of=here/x.sif bs=1 seek=100 conv=notrunc status=none")
            .refused("signature-invalid", &[changed]);
    }
}

/// Sixteen ranks ask gpgv once, and those that join open nothing of the image's directory; without the requirement
/// nobody asks.
#[test]
fn one_rank_of_a_node_verifies() {
    let made = Made::new();
    let who = everyone()[0];
    for (asked, times) in [(true, 1), (false, 0)] {
        let trace = made.at(&format!("trace-{asked}"));
        fs::create_dir(&trace).unwrap();
        let prefix = text(&trace).to_owned() + "/t";
        let strace = ["strace", "-ff", "-o", &prefix, "-e", "trace=%file,execve,setns"];
        let option: &[&str] = if asked { &["--require-signature"] } else { &[] };
        let program = text(launcher());
        let line = ["-n", "16", "--oversubscribe"];
        Run::command(
            who,
            [&strace[..], &[program], &line, option, &[text(&made.sif), "sleep", "1"]].concat(),
        )
        .env("APPTAINER_KEYSDIR", &made.ring)
        .limit(Duration::from_secs(120))
        .run()
        .good();
        let (mut verifiers, mut joined) = (0, 0);
        for file in fs::read_dir(&trace).unwrap() {
            let trace = fs::read_to_string(file.unwrap().path()).unwrap();
            verifiers += trace
                .lines()
                .filter(|l| l.starts_with("execve(") && l.contains("/gpgv\"") && l.ends_with("= 0"))
                .count();
            let lines: Vec<&str> = trace.lines().collect();
            let Some(setns) = lines.iter().position(|l| l.starts_with("setns(")) else { continue };
            joined += 1;
            let is_image = |l: &&&str| l.contains(text(made.dir.path())) && !l.starts_with("execve(");
            let looked: Vec<_> = lines[..setns].iter().filter(is_image).collect();
            assert!(looked.is_empty(), "{looked:#?}");
        }
        assert_eq!((verifiers, joined), (times, 15), "{asked}");
    }
}

/// A rank that requires a signature does not join the sandbox of one that did not.
#[test]
fn no_rank_joins_what_was_not_verified() {
    let made = Made::new();
    let unsigned = made.unsigned("unsigned.sif");
    let mut bytes = Bytes::of(&unsigned);
    bytes.flip(20);
    bytes.write(&unsigned);
    for who in everyone() {
        let second =
            ["-n", "1", text(launcher()), "--require-signature", text(&unsigned), "sh", "-c", "echo never"];
        let first = [text(&unsigned), "sh", "-c", "sleep 2"];
        let line = [&first[..], &[":"], &second].concat();
        let outcome = Run::mpirun(*who, 1, line).env("APPTAINER_KEYSDIR", &made.ring).run();
        let outcome = outcome.says(&["[image-unsigned] ", "is not signed"]);
        assert!(!outcome.out().contains("never"), "{outcome}");
    }
}
