//! Bytes as a PMIx connection: hello, its answer, and messages, the same however they come.
#![no_main]

use libfuzzer_sys::fuzz_target;
use made::memory::modest;
use pmi_shim::pmix::handshake::{Header, Hello, Messages};

type Seen = (Option<Hello>, Vec<(Header, Vec<u8>)>, bool);

fn read(bytes: &[u8], cut: usize) -> Seen {
    let (mut messages, mut hello, mut seen) = (Messages::default(), None, Vec::new());
    for part in bytes.chunks(cut) {
        messages.push(part);
        if hello.is_none() {
            match messages.hello() {
                Ok(Some(one)) => hello = Some(one),
                Ok(None) => continue,
                Err(_) => return (hello, seen, true),
            }
        }
        loop {
            match messages.message() {
                Ok(Some(one)) => seen.push(one),
                Ok(None) => break,
                Err(_) => return (hello, seen, true),
            }
        }
    }
    (hello, seen, false)
}

fn welcome(bytes: &[u8], cut: usize) -> Option<Result<i32, i32>> {
    let mut messages = Messages::default();
    bytes.chunks(cut).find_map(|part| {
        messages.push(part);
        messages.welcome()
    })
}

fuzz_target!(|bytes: &[u8]| {
    modest(bytes, || {
        let whole = bytes.len().max(1);
        let (hello, messages, is_bad) = read(bytes, whole);
        for cut in [1, 7] {
            assert_eq!(read(bytes, cut), (hello.clone(), messages.clone(), is_bad));
            assert_eq!(welcome(bytes, cut), welcome(bytes, whole));
        }
        if let Some(hello) = hello {
            let _ = (hello.judge(), hello.uid(), hello.welcome());
            assert_eq!(read(&hello.encode(), usize::MAX).0, Some(hello));
        }
        for (header, body) in messages {
            assert_eq!(header.length, body.len());
            let mut one = Messages::default();
            one.push(&Header::frame(header.index, header.tag, &body));
            assert_eq!(one.message(), Ok(Some((header, body))));
        }
    });
});
