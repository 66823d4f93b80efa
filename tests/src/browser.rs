//! A real browser, without a window: how a page is laid out, what it complains of, how it looks.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::host::{Who, is_root};
use crate::image::directory;
use crate::run::{Outcome, Run};

/// What looks at the page.
const MEASURE: &str = include_str!("../data/measure.js");

/// A place for pages and for what the browser writes, gone with the value.
pub struct Browser {
    dir: TempDir,
}

impl Browser {
    /// A browser that knows nothing of earlier ones.
    #[expect(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Browser {
        Browser { dir: directory("/var/tmp") }
    }

    /// What tests/data/measure.js finds of a page in a frame of this width. The page's own policy is taken away: a
    /// script that got into it would run. `sabotage` is done to it first, to see that it is found.
    pub fn measure(&self, page: &str, width: u32, dark: bool, sabotage: &str) -> Value {
        let start = page.find("<meta http-equiv=\"Content-Security-Policy\"").expect("a policy");
        let end = start + page[start..].find('>').expect("its end") + 1;
        let page = format!("{}{}", &page[..start], &page[end..]).replace('&', "&amp;").replace('"', "&quot;");
        let outer = format!(
            "<!DOCTYPE html><meta charset=\"utf-8\"><body><iframe id=\"frame\" srcdoc=\"{page}\" width=\"{width}\" \
             height=\"2000\" frameborder=\"0\"></iframe><pre id=\"findings\"></pre><script>{MEASURE}\n\
             onload = () => measure(document.getElementById(\"frame\"), \"{sabotage}\");</script>"
        );
        let scheme = format!("--blink-settings=preferredColorScheme={}", if dark { 0 } else { 1 });
        let outcome = self.run(&["--dump-dom", "--window-size=1400,2200", &scheme], &outer);
        let text = outcome.out();
        let found = text.split_once("<pre id=\"findings\">").and_then(|(_, rest)| rest.split_once("</pre>"));
        let found = found.unwrap_or_else(|| panic!("the browser found nothing\n{outcome}")).0;
        serde_json::from_str(found).unwrap_or_else(|e| panic!("{e}: {found}\n{}", outcome.err()))
    }

    /// What it complains of when it shows the page as it is.
    pub fn complaints(&self, page: &str) -> Vec<String> {
        let outcome = self.run(&["--dump-dom", "--enable-logging=stderr"], page);
        assert!(outcome.out().contains("</html>"), "{outcome}");
        outcome.err().lines().filter(|line| line.contains(":CONSOLE")).map(Into::into).collect()
    }

    /// The picture of the page, as PNG.
    pub fn picture(&self, page: &str, width: u32, height: u32) -> Vec<u8> {
        let file = self.dir.path().join("picture.png");
        let file = file.to_str().expect("a plain name");
        self.run(&[&format!("--screenshot={file}"), &format!("--window-size={width},{height}")], page);
        let bytes = fs::read(file).expect("a picture");
        assert!(bytes.starts_with(b"\x89PNG\r\n"), "no picture");
        bytes
    }

    fn run(&self, options: &[&str], page: &str) -> Outcome {
        let at = |name: &str| self.dir.path().join(name);
        fs::write(at("page.html"), page).expect("a page");
        let who = if is_root() { Who::Root } else { Who::User };
        let own = |option: &str, path: &Path| format!("--{option}={}", path.display());
        // Its sandbox cannot be had as root, and what it is shown is ours.
        Run::command(
            who,
            ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"],
        )
        .args(["--disable-dev-shm-usage", "--no-first-run", "--disable-crash-reporter"])
        .args(["--disable-background-networking", "--disable-component-update"])
        .args([own("user-data-dir", &at("profile"))])
        .args(options)
        .args([format!("file://{}", at("page.html").display())])
        .env("HOME", at("home"))
        .env("LANG", "C.UTF-8")
        .limit(Duration::from_secs(120))
        .run()
        .good()
    }
}
