//! Requests to one registry: tokens, what is tried again, and what its refusals mean.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::Settings;
use super::agent::{agent, is_loopback};
use super::credentials::{Credential, credential};
use super::reference::Reference;
use crate::error::{Error, Kind, Result};
use crate::layout::MAX_MANIFEST;

/// What a manifest may be.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Requests that may work when they are made again.
const TRIES: u32 = 4;
/// Longer is for the user to wait.
const MAX_WAIT: Duration = Duration::from_secs(30);
const MAX_TEXT: u64 = 64 << 10;
const MAX_TAGS: u64 = 1 << 20;

/// A registry that answers.
pub struct Client {
    agent: Agent,
    base: String,
    host: String,
    registry: String,
    repository: String,
    credential: Option<Credential>,
    /// `Authorization`, once it is known what is wanted.
    authorization: Mutex<Option<String>>,
}

impl Client {
    /// Finds a host that has the image, mirrors first. Answers its manifest too.
    pub fn connect(reference: &Reference, settings: &Settings) -> Result<(Client, Vec<u8>)> {
        let mirrors = settings.mirrors.get(&reference.registry).cloned().unwrap_or_default();
        let mut failures = Vec::new();
        for mirror in mirrors {
            match Client::at(&mirror, reference, settings).and_then(|client| {
                let manifest = client.manifest(&reference.repository, &reference.wanted())?;
                Ok((client, manifest))
            }) {
                Ok(found) => return Ok(found),
                Err(e) => failures.push(format!("mirror {mirror}: {}", e.what)),
            }
        }
        let found = Client::at(reference.host(), reference, settings).and_then(|client| {
            let manifest = client.manifest(&reference.repository, &reference.wanted())?;
            Ok((client, manifest))
        });
        found.map_err(|mut e| {
            if !failures.is_empty() {
                e.what = format!("{} ({})", e.what, failures.join("; "));
            }
            e
        })
    }

    /// Speaks to a host, by TLS unless it is known not to.
    fn at(host: &str, reference: &Reference, settings: &Settings) -> Result<Client> {
        let (given_scheme, host) = match host.split_once("://") {
            Some((scheme, host)) => (Some(scheme), host.trim_end_matches('/')),
            None => (None, host),
        };
        let is_plain = given_scheme == Some("http") || settings.plain.iter().any(|plain| plain == host);
        let mut client = Client {
            agent: agent(host, !is_plain, settings)?,
            base: format!("{}://{host}", if is_plain { "http" } else { "https" }),
            host: host.to_owned(),
            registry: reference.registry.clone(),
            repository: reference.repository.clone(),
            credential: credential(reference, host, &settings.credentials)?,
            authorization: Mutex::new(None),
        };
        match client.ping() {
            Ok(()) => Ok(client),
            // As docker has it: a registry on this very machine may do without TLS.
            Err(e) if !is_plain && given_scheme.is_none() && is_loopback(host) => {
                client.base = format!("http://{host}");
                client.agent = agent(host, false, settings)?;
                client.ping().map_err(|_| e)?;
                Ok(client)
            }
            Err(e) => Err(e),
        }
    }

    /// Its host.
    pub fn host(&self) -> &str {
        &self.host
    }

    fn ping(&self) -> Result<()> {
        let url = format!("{}/v2/", self.base);
        let response = self.send(&url, &[])?;
        match response.status().as_u16() {
            200 | 401 | 403 | 429 => Ok(()),
            404 => Err(Error::new(
                Kind::Registry,
                format!("{} does not speak as a registry: {url} is not found", self.host),
                "check the host; some registries are below another name than their web pages",
            )),
            _ => Err(self.refusal(&url, response)),
        }
    }

    /// One request, made again where that may help.
    fn send(&self, url: &str, headers: &[(&str, String)]) -> Result<Response<Body>> {
        let mut wait = Duration::from_millis(500);
        for attempt in 1.. {
            let mut request = self.agent.get(url);
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            let (again, result) = match request.call() {
                Ok(response) => {
                    let status = response.status();
                    let after = retry_after(&response);
                    wait = after.unwrap_or(wait);
                    let again = (status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error())
                        && wait <= MAX_WAIT;
                    (again, Ok(response))
                }
                Err(e) => (is_passing(&e), Err(self.unreachable(url, &e))),
            };
            if !again || attempt >= TRIES {
                return result;
            }
            std::thread::sleep(wait);
            wait *= 2;
        }
        Err(Error::new(Kind::Registry, format!("no answer from {}", self.host), "try again"))
    }

    /// A request with the credentials that are wanted.
    pub fn get(&self, path: &str, headers: &[(&str, String)]) -> Result<Response<Body>> {
        let url = format!("{}{path}", self.base);
        for is_second in [false, true] {
            let mut all = headers.to_vec();
            if let Some(authorization) = self.authorization.lock().ok().and_then(|a| a.clone()) {
                all.push(("Authorization", authorization));
            }
            let response = self.send(&url, &all)?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status != StatusCode::UNAUTHORIZED || is_second {
                return Err(self.refusal(&url, response));
            }
            let challenge = response.headers().get_all("www-authenticate").iter();
            let challenges: Vec<String> =
                challenge.filter_map(|v| Some(v.to_str().ok()?.to_owned())).collect();
            match self.authorize(&challenges)? {
                Some(authorization) => {
                    if let Ok(mut held) = self.authorization.lock() {
                        *held = Some(authorization);
                    }
                }
                None => return Err(self.refusal(&url, response)),
            }
        }
        Err(Error::new(Kind::Registry, format!("no answer from {}", self.host), "try again"))
    }

    /// What a registry that refused wants to hear (RFC 7235; the distribution project's token.md).
    fn authorize(&self, challenges: &[String]) -> Result<Option<String>> {
        let of = |scheme: &str| {
            let is_it = |c: &&String| c.get(..scheme.len()).is_some_and(|s| s.eq_ignore_ascii_case(scheme));
            challenges.iter().find(is_it).map(|c| parameters(&c[scheme.len()..]))
        };
        if let Some(parameters) = of("Bearer ") {
            return self.token(&parameters).map(Some);
        }
        let basic = of("Basic").and(self.credential.as_ref());
        Ok(basic.map(|c| basic_authorization(&c.user, &c.secret)))
    }

    fn token(&self, parameters: &BTreeMap<String, String>) -> Result<String> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let odd = |why: &str| {
            Error::new(
                Kind::Registry,
                format!("{} wants a token and {why}", self.host),
                "ask that registry's administrator",
            )
        };
        let realm = parameters.get("realm").ok_or_else(|| odd("does not say from where"))?;
        // A password goes to what is as safe as the registry itself.
        let is_safe = realm.starts_with("https://")
            || (realm.starts_with("http://") && self.base.starts_with("http://"));
        if !is_safe {
            return Err(odd(&format!("says an address that is not safe: {realm:?}")));
        }
        let scope = format!("repository:{}:pull", self.repository);
        let service = parameters.get("service").map(String::as_str).unwrap_or_default();
        let response = match &self.credential {
            Some(credential) if credential.is_token => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("service", service),
                    ("client_id", "hpc-launch"),
                    ("scope", &scope),
                    ("refresh_token", &credential.secret),
                ];
                self.agent.post(realm).send_form(form).map_err(|e| self.unreachable(realm, &e))?
            }
            credential => {
                let joint = if realm.contains('?') { '&' } else { '?' };
                let url = format!("{realm}{joint}service={}&scope={}", escaped(service), escaped(&scope));
                let mut headers = Vec::new();
                if let Some(c) = credential {
                    headers.push(("Authorization", basic_authorization(&c.user, &c.secret)));
                }
                self.send(&url, &headers)?
            }
        };
        if !response.status().is_success() {
            return Err(self.refusal(realm, response));
        }
        let text = text_of(response, MAX_TEXT);
        let token: Token = serde_json::from_str(&text).map_err(|_| odd("sends none"))?;
        let token = token.token.or(token.access_token).ok_or_else(|| odd("sends none"))?;
        Ok(format!("Bearer {token}"))
    }

    /// A manifest or an index, by tag or digest.
    pub fn manifest(&self, repository: &str, wanted: &str) -> Result<Vec<u8>> {
        let path = format!("/v2/{repository}/manifests/{wanted}");
        let mut response =
            self.get(&path, &[("Accept", MANIFESTS.to_owned())]).map_err(|e| self.with_tags(e, wanted))?;
        response.body_mut().with_config().limit(MAX_MANIFEST).read_to_vec().map_err(|e| match e {
            ureq::Error::BodyExceedsLimit(_) => {
                Error::hostile(format!("{} sends a manifest of more than 4 MiB", self.host))
            }
            e => self.unreachable(&path, &e),
        })
    }

    /// A missing tag, with those that are there.
    fn with_tags(&self, mut e: Error, wanted: &str) -> Error {
        #[derive(Deserialize)]
        struct Tags {
            tags: Option<Vec<String>>,
        }
        if e.kind != Kind::Missing {
            return e;
        }
        let path = format!("/v2/{}/tags/list?n=1000", self.repository);
        let tags = self.get(&path, &[]).ok().map(|response| text_of(response, MAX_TAGS));
        let tags: Vec<String> = tags
            .and_then(|text| serde_json::from_str::<Tags>(&text).ok()?.tags)
            .unwrap_or_default()
            .into_iter()
            .filter(|tag| tag.bytes().all(|b| b.is_ascii_graphic()))
            .collect();
        if tags.is_empty() {
            e.cure = "check the name: the registry has no such repository, or does not show it to you (podman login, docker login)".to_owned();
            return e;
        }
        let mut near: Vec<&String> = tags.iter().collect();
        near.sort_by_key(|tag| crate::store::distance(tag, wanted));
        let near: Vec<&str> = near.into_iter().take(5).map(String::as_str).collect();
        e.cure = format!("it has {} tags, the nearest: {}", tags.len(), near.join(", "));
        e
    }

    /// What a status of failure means.
    fn refusal(&self, url: &str, response: Response<Body>) -> Error {
        let status = response.status();
        let after = retry_after(&response);
        let said = said(&text_of(response, MAX_TEXT));
        let what = format!("{} answers {} to {url}{said}", self.host, status);
        let login = format!("podman login {0}, or docker login {0}", self.registry);
        match status.as_u16() {
            401 | 403 => {
                let (tried, cure) = match &self.credential {
                    Some(c) => (
                        format!("; tried as {:?}, from {}", c.user, c.from),
                        format!("log in again ({login}), or ask for the right to pull from it"),
                    ),
                    None => (
                        "; no credentials for it were found".to_owned(),
                        format!("log in: {login}; check the name"),
                    ),
                };
                Error::new(Kind::Denied, what + &tried, cure)
            }
            404 => Error::new(Kind::Missing, what, "check the name and the tag"),
            429 => {
                let wait = after.map(|a| format!("wait {} s, and ", a.as_secs())).unwrap_or_default();
                let cure = format!(
                    "{wait}log in for a higher limit ({login}), or set up a mirror (mirrors in the configuration)"
                );
                Error::new(Kind::RateLimit, what, cure)
            }
            _ => Error::new(
                Kind::Registry,
                what,
                "try again later; if it stays so, ask that registry's administrator",
            ),
        }
    }

    /// Why there was no answer.
    pub fn unreachable(&self, url: &str, e: &ureq::Error) -> Error {
        let proxy = self
            .agent
            .config()
            .proxy()
            .map(|p| format!(" (by the proxy {}:{})", p.host(), p.port()))
            .unwrap_or_default();
        let what = format!("cannot reach {} at {url}{proxy}: {e}", self.host);
        let cure = match e {
            ureq::Error::HostNotFound => {
                "check the host's name; compute nodes often have no way out: pull on a login node, into a store that both see"
            }
            ureq::Error::Rustls(_) | ureq::Error::Tls(_) => {
                "if it has a certificate of the site's own authority: put that into /etc/containers/certs.d/HOST/ca.crt or \
                 ~/.config/containers/certs.d/HOST/ca.crt; if it speaks without TLS: plain_registries in the configuration, or --plain-http"
            }
            ureq::Error::Io(e) if is_tls(e) => {
                "if it has a certificate of the site's own authority: put that into /etc/containers/certs.d/HOST/ca.crt or \
                 ~/.config/containers/certs.d/HOST/ca.crt; if it speaks without TLS: plain_registries in the configuration, or --plain-http"
            }
            _ => {
                "check host and port, and HTTPS_PROXY, HTTP_PROXY, NO_PROXY; compute nodes often have no way out: pull on a login node"
            }
        };
        Error::new(Kind::Registry, what, cure)
    }
}

fn is_tls(e: &std::io::Error) -> bool {
    let text = e.to_string();
    e.kind() == std::io::ErrorKind::InvalidData
        || text.contains("certificate")
        || text.contains("TLS")
        || text.contains("corrupt message")
}

/// Whether the same request may work a moment later.
fn is_passing(e: &ureq::Error) -> bool {
    match e {
        ureq::Error::Timeout(_) => true,
        ureq::Error::Io(e) => matches!(
            e.kind(),
            std::io::ErrorKind::ConnectionReset
                | std::io::ErrorKind::ConnectionAborted
                | std::io::ErrorKind::UnexpectedEof
                | std::io::ErrorKind::BrokenPipe
        ),
        _ => false,
    }
}

/// Seconds; a date is not waited for.
fn retry_after(response: &Response<Body>) -> Option<Duration> {
    let value = response.headers().get("retry-after")?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

fn text_of(response: Response<Body>, most: u64) -> String {
    let mut text = Vec::new();
    let _ = response.into_body().into_reader().take(most).read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// The words of a registry's error, without what terminals obey.
fn said(body: &str) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let errors: Option<Errors> = serde_json::from_str(body).ok();
    let first = errors.and_then(|e| e.errors.into_iter().next());
    let text = first.map(|e| format!("{} {}", e.code, e.message)).unwrap_or_default();
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    if text.trim().is_empty() { String::new() } else { format!(": {}", text.trim()) }
}

/// `name="value", name=value`.
fn parameters(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text.trim_start();
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.find(',').map_or((after, ""), |at| after.split_at(at)),
        };
        found.insert(name.trim().to_ascii_lowercase(), value.to_owned());
        rest = after.trim_start_matches([',', ' ', '\t']);
    }
    found
}

/// For a query (RFC 3986).
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                char::from(b).to_string()
            }
            b => format!("%{b:02X}"),
        })
        .collect()
}

/// RFC 7617.
fn basic_authorization(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let p = parameters("realm=\"https://auth.example.org/token\",service=\"r, s\",scope=x");
        assert_eq!(p["realm"], "https://auth.example.org/token");
        assert_eq!((p["service"].as_str(), p["scope"].as_str()), ("r, s", "x"));
        assert!(parameters("").is_empty());
        assert_eq!(parameters("realm=\"open")["realm"], "open");
    }
}
