//! The client of HTTP for one host: proxies, and which certificates are trusted.

use std::fs;
use std::time::Duration;

use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Proxy};

use super::{Proxies, Settings};
use crate::error::{Error, Kind, Result};

const CONNECT: Duration = Duration::from_secs(15);
/// Nothing for so long is a cut.
const SILENCE: Duration = Duration::from_secs(30);

/// Whether a host is this very machine, by its name.
pub fn is_loopback(host: &str) -> bool {
    let name = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
        .map_or(host, |(name, _)| name);
    name == "localhost" || name == "[::1]" || name.starts_with("127.")
}

/// The client of HTTP, as this host wants it.
pub fn agent(host: &str, is_tls: bool, settings: &Settings) -> Result<Agent> {
    let mut builder = Agent::config_builder()
        .http_status_as_error(false)
        .user_agent(settings.agent.clone())
        .accept_encoding("identity")
        .max_redirects(5)
        .timeout_connect(Some(CONNECT))
        .timeout_per_read(Some(SILENCE))
        .proxy(proxy(host, is_tls, &settings.proxies)?);
    if is_tls {
        builder =
            builder.tls_config(TlsConfig::builder().root_certs(roots(host, &settings.certificates)?).build());
    }
    Ok(builder.build().new_agent())
}

fn proxy(host: &str, is_tls: bool, proxies: &Proxies) -> Result<Option<Proxy>> {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let is_none = |pattern: &String| {
        let pattern = pattern.trim().trim_start_matches('*').trim_start_matches('.');
        pattern.is_empty() || name == pattern || host == pattern || name.ends_with(&format!(".{pattern}"))
    };
    let wanted = if is_tls { &proxies.https } else { &proxies.http };
    let Some(address) = wanted.as_ref().filter(|_| !is_loopback(host) && !proxies.none.iter().any(is_none))
    else {
        return Ok(None);
    };
    Proxy::new(address).map(Some).map_err(|e| {
        let what = format!("the proxy {address:?} cannot be understood: {e}");
        Error::new(Kind::Registry, what, "set HTTPS_PROXY and HTTP_PROXY to http://HOST:PORT")
    })
}

/// Whom to trust: what this machine trusts (or, where it says nothing, what browsers do), and the host's own.
fn roots(host: &str, directories: &[std::path::PathBuf]) -> Result<RootCerts> {
    let native = rustls_native_certs::load_native_certs().certs;
    let mut all: Vec<Certificate<'static>> =
        native.iter().map(|c| Certificate::from_der(c).to_owned()).collect();
    let mut own = Vec::new();
    for directory in directories {
        let Ok(entries) = fs::read_dir(directory.join(host)) else { continue };
        for path in entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "crt"))
        {
            let text = fs::read(&path).map_err(|e| Error::reading(&path, &e))?;
            let certificates = parse_pem(&text).filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            });
            own.extend(certificates);
        }
    }
    if all.is_empty() && own.is_empty() {
        return Ok(RootCerts::WebPki);
    }
    all.extend(own);
    Ok(RootCerts::new_with_certs(&all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_needs_no_proxy() {
        let proxies = Proxies {
            http: Some("http://p:1".to_owned()),
            https: Some("http://p:2".to_owned()),
            none: vec![".example.org".to_owned(), "r.site".to_owned()],
        };
        let port = |host: &str, tls| proxy(host, tls, &proxies).unwrap().map(|p| p.port());
        assert_eq!((port("x.net", true), port("x.net:80", false)), (Some(2), Some(1)));
        for host in
            ["a.example.org", "example.org:443", "r.site:5000", "localhost:5000", "127.0.0.1:1", "[::1]:5000"]
        {
            assert_eq!(port(host, true), None, "{host}");
        }
        assert!(
            proxy("x.net", true, &Proxies { https: Some("::".to_owned()), ..Proxies::default() }).is_err()
        );
    }
}
