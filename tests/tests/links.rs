//! Programs made to be hard for a loader: abi-probe against the real one of this host, and against what the
//! rules say.

use std::fs;
use std::path::Path;
use std::process::Command;

use hpc_launch_tests::image::directory;
use hpc_launch_tests::loader::{How, Said, abi_probe, difference, loader};
use tempfile::TempDir;

/// A directory with what a shell script has built there.
struct Built(TempDir);

impl Built {
    /// `lib NAME WHERE FLAGS` and `prog NAME FLAGS` compile with what the source on their input says.
    fn new(script: &str) -> Built {
        let dir = directory("/var/tmp");
        let prelude = "set -eu
            lib() { n=$1 d=$2; shift 2; mkdir -p $d; gcc -xc - -xnone -shared -fPIC -o $d/$n -Wl,-soname,$n \"$@\"; }
            prog() { n=$1; shift; mkdir -p $(dirname $n); gcc -xc - -xnone -o $n -Wl,--allow-shlib-undefined \"$@\"; }
            ";
        let output = Command::new("/bin/sh")
            .args(["-c", &format!("{prelude}{script}")])
            .current_dir(dir.path())
            .output()
            .expect("a shell");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Built(dir)
    }

    fn at(&self, path: &str) -> String {
        self.0.path().join(path).to_str().expect("text").to_owned()
    }

    /// What both say of a program; they must agree.
    #[track_caller]
    fn links(&self, program: &str, library_path: Option<&str>, preload: Option<&str>) -> Said {
        let directory = self.at("");
        let how = How { root: Path::new("/"), library_path, preload, directory: &directory };
        let path = self.at(program);
        let ours = abi_probe(&how, std::slice::from_ref(&path));
        let real = loader(&how, &ours);
        let (ours, real) = (&ours[&path].1, &real[&path]);
        if let Some(difference) = difference(ours, real) {
            panic!("{program}:\n{difference}\nours {ours:#?}\nreal {real:#?}");
        }
        ours.clone()
    }
}

/// The path by which an object was found.
#[track_caller]
fn path_of<'s>(said: &'s Said, name: &str) -> Option<&'s str> {
    let object = said.objects.iter().find(|(n, _)| n == name);
    object.unwrap_or_else(|| panic!("{name} is not asked for: {said:#?}")).1.as_deref()
}

const NEW: &str = "-Wl,--enable-new-dtags";
const OLD: &str = "-Wl,--disable-new-dtags";

/// A program that needs liba, which needs libb; both in two directories.
fn two_levels(program: &str, liba: &str) -> Built {
    Built::new(&format!(
        "for d in one two; do
             echo 'int b(void) {{ return 2; }}' | lib libb.so $d
             echo 'int b(void); int a(void) {{ return b(); }}' | lib liba.so $d -L$d -lb {liba}
         done
         echo 'int a(void); int main(void) {{ return a(); }}' | prog bin/p -Lone -la -Wl,-rpath-link,one {program}"
    ))
}

#[test]
fn rpath_is_inherited_and_comes_before_the_library_path() {
    let built = two_levels(&format!("{OLD} -Wl,-rpath,'$ORIGIN/../one'"), "");
    let said = built.links("bin/p", Some(&built.at("two")), None);
    let one = |name| Some(built.at(&format!("bin/../one/{name}")));
    assert_eq!(path_of(&said, "liba.so"), one("liba.so").as_deref());
    assert_eq!(path_of(&said, "libb.so"), one("libb.so").as_deref());
}

#[test]
fn runpath_is_for_the_object_alone_and_comes_after_the_library_path() {
    let built = two_levels(&format!("{NEW} -Wl,-rpath,'${{ORIGIN}}/../one'"), "");
    let said = built.links("bin/p", None, None);
    assert_eq!(path_of(&said, "liba.so"), Some(&*built.at("bin/../one/liba.so")));
    assert_eq!(path_of(&said, "libb.so"), None);
    let said = built.links("bin/p", Some(&built.at("two")), None);
    assert_eq!(path_of(&said, "liba.so"), Some(&*built.at("two/liba.so")));
    assert_eq!(path_of(&said, "libb.so"), Some(&*built.at("two/libb.so")));
}

#[test]
fn a_library_with_a_runpath_inherits_no_rpath() {
    let built =
        two_levels(&format!("{OLD} -Wl,-rpath,'$ORIGIN/../one'"), &format!("{NEW} -Wl,-rpath,/nowhere"));
    let said = built.links("bin/p", None, None);
    assert!(path_of(&said, "liba.so").is_some());
    assert_eq!(path_of(&said, "libb.so"), None);
}

#[test]
fn tokens_empty_items_and_relative_directories() {
    let built = two_levels(&format!("{OLD} -Wl,-rpath,'/nowhere/$LIB/$PLATFORM::two'"), "");
    fs::copy(built.at("one/liba.so"), built.at("liba.so")).unwrap();
    let said = built.links("bin/p", None, None);
    assert_eq!(path_of(&said, "liba.so"), Some("liba.so"));
    assert_eq!(path_of(&said, "libb.so"), Some("two/libb.so"));
    let said = built.links("bin/p", Some("$ORIGIN/../one;"), None);
    assert_eq!(path_of(&said, "liba.so"), Some("liba.so"), "DT_RPATH comes first");
}

#[test]
fn library_path_with_semicolons_and_slashes() {
    let built = two_levels("", "");
    let said = built.links("bin/p", Some("/nowhere;$ORIGIN/../one//;two"), None);
    assert_eq!(path_of(&said, "liba.so"), Some(&*built.at("bin/../one/liba.so")));
}

#[test]
fn directories_for_better_processors() {
    let built = two_levels("", "");
    for sub in ["glibc-hwcaps/x86-64-v2", "glibc-hwcaps/x86-64-v9", "tls/x86_64", "x86_64"] {
        let directory = built.at(&format!("one/{sub}"));
        fs::create_dir_all(&directory).unwrap();
        fs::copy(built.at("one/libb.so"), format!("{directory}/libb.so")).unwrap();
    }
    fs::copy(built.at("one/liba.so"), built.at("one/x86_64/liba.so")).unwrap();
    let said = built.links("bin/p", Some(&built.at("one")), None);
    assert_eq!(path_of(&said, "libb.so"), Some(&*built.at("one/glibc-hwcaps/x86-64-v2/libb.so")));
}

#[test]
fn a_file_is_one_object_under_all_its_names() {
    let built = Built::new(
        "echo 'int a(void) { return 1; }' | gcc -xc - -shared -fPIC -o libreal.so -Wl,-soname,libsoname.so
         ln -s libreal.so liblink.so; ln -s libreal.so libsoname.so
         echo 'int a(void); int x(void) { return a(); }' | lib libx.so . -L. -l:liblink.so
         echo 'int a(void); int x(void); int main(void) { return a() + x(); }' | prog p -L. -lx -lsoname
         echo 'int a(void) { return 1; }' | gcc -xc - -shared -fPIC -o libnosoname.so
         echo 'int a(void); int main(void) { return a(); }' | prog absolute $PWD/libnosoname.so",
    );
    let said = built.links("p", Some("."), None);
    assert_eq!(
        said.objects.iter().filter(|(_, p)| p.as_deref().is_some_and(|p| p.starts_with("./"))).count(),
        2
    );
    let said = built.links("absolute", None, None);
    let path = built.at("libnosoname.so");
    assert_eq!(path_of(&said, &path), Some(path.as_str()), "an absolute DT_NEEDED is taken as it is");
}

#[test]
fn what_is_missing_is_asked_for_by_everyone() {
    let built = two_levels("", "");
    let said = built.links("bin/p", None, None);
    assert_eq!(path_of(&said, "liba.so"), None);
    assert!(said.missing.iter().any(|m| m.starts_with("symbol a for ")), "{said:#?}");
    fs::remove_file(built.at("one/libb.so")).unwrap();
    let said = built.links("bin/p", Some("one"), None);
    assert_eq!((path_of(&said, "liba.so"), path_of(&said, "libb.so")), (Some("one/liba.so"), None));
    assert!(said.missing.contains("symbol b for one/liba.so"), "{said:#?}");
}

#[test]
fn preloaded_objects_come_first_and_resolve() {
    let built = two_levels("", "");
    fs::remove_file(built.at("one/libb.so")).unwrap();
    let preload = built.at("two/libb.so");
    let said = built.links("bin/p", Some("one"), Some(&preload));
    assert_eq!(said.objects[0].0, preload);
    // It goes by its soname too.
    assert!(said.missing.is_empty() && said.objects.iter().all(|(_, p)| p.is_some()), "{said:#?}");
    assert!(built.links("bin/p", Some("two"), Some("libnowhere.so")).fatal, "said aloud");
}

#[test]
fn versions_that_are_missing_hidden_weak_or_unknown() {
    let built = Built::new(
        "echo 'V1 { global: a; local: *; }; V2 { global: b; } V1;' > two.map
         echo 'V1 { global: a; local: *; };' > one.map
         echo 'int a(void) { return 1; } int b(void) { return 2; }' | lib libv.so two -Wl,--version-script,two.map
         echo 'int a(void) { return 1; }' | lib libv.so one -Wl,--version-script,one.map
         echo 'int a(void) { return 1; } int b(void) { return 2; }' | lib libv.so none
         echo 'int puts(const char *); int a(void) { return puts(\"\"); } int b(void) { return 2; }' | lib libv.so others
         echo '__asm__(\".symver old, a@V1\"); int old(void) { return 1; } int b(void) { return 2; }' \
             | lib libv.so hidden -Wl,--version-script,two.map
         echo 'int a(void); int b(void); int main(void) { return a() + b(); }' | prog p -Ltwo -lv
         echo 'int a(void); int main(void) { return a(); }' | prog unversioned -Lnone -lv",
    );
    assert!(built.links("p", Some("two"), None).missing.is_empty());
    let said = built.links("p", Some("one"), None);
    let program = built.at("p");
    assert!(said.missing.contains(&format!("version V2 in one/libv.so for {program}")), "{said:#?}");
    assert!(said.missing.contains(&format!("symbol b, version V2 for {program}")), "{said:#?}");
    assert!(built.links("p", Some("none"), None).fatal, "the loader aborts");
    let said = built.links("p", Some("others"), None);
    assert_eq!(said.missing.len(), 1, "no version information is said, and is no error: {said:#?}");
    assert!(!said.fatal);
    built.links("p", Some("hidden"), None);
    for directory in ["one", "two", "none", "others", "hidden"] {
        built.links("unversioned", Some(directory), None);
    }
}

#[test]
fn weak_data_copied_symbolic_and_protected() {
    let built = Built::new(
        "echo 'int table[4] = {1}; int own(void) { return 1; } extern int gone(void) __attribute__((weak));
               extern int lost; int *at(void) { return &lost; } int call(void) { return own() + (gone ? gone() : 0); }' \
             | lib libd.so old -Wl,-Bsymbolic
         echo 'int table[8] = {1}; int own(void) { return 1; } int lost; int *at(void) { return &lost; }
               int call(void) { return 0; }' | lib libd.so new -Wl,--hash-style=sysv
         echo 'extern int table[]; int call(void); int *at(void); int main(void) { return table[0] + call() + *at(); }' \
             | prog p -Lold -ld -fno-pie -no-pie",
    );
    let said = built.links("p", Some("old"), None);
    assert_eq!(said.missing.iter().collect::<Vec<_>>(), ["symbol lost for old/libd.so"], "not the weak one");
    assert!(built.links("p", Some("new"), None).missing.is_empty(), "a table of another size is no error");
}

#[test]
fn files_that_are_no_libraries() {
    let built = two_levels("", "");
    let other = built.at("other");
    fs::create_dir(&other).unwrap();
    // For another machine: passed over.
    let mut bytes = fs::read(built.at("one/liba.so")).unwrap();
    bytes[18] = 183;
    fs::write(format!("{other}/liba.so"), bytes).unwrap();
    let said = built.links("bin/p", Some("other:one"), None);
    assert_eq!(path_of(&said, "liba.so"), Some("one/liba.so"));
    // A linker script: the loader gives up.
    fs::write(format!("{other}/liba.so"), "INPUT(liba.so.1)").unwrap();
    assert!(built.links("bin/p", Some("other:one"), None).fatal);
}

#[test]
fn an_object_that_wants_no_default_directories() {
    let built = Built::new(
        "echo 'int z(void) { return 0; }' | lib libn.so . -nostdlib -Wl,--no-as-needed -lm -Wl,-z,nodefaultlib",
    );
    let said = built.links("libn.so", None, None);
    assert_eq!(path_of(&said, "libm.so.6"), None);
    let directory = "/lib/x86_64-linux-gnu";
    assert!(path_of(&built.links("libn.so", Some(directory), None), "libm.so.6").is_some());
}
