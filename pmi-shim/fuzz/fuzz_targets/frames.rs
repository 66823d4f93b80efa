//! Bytes as PMI-1 and PMI-2: the same frames however they come, and messages that survive being encoded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use made::memory::modest;
use pmi_shim::wire::message::Protocol;
use pmi_shim::wire::{Frame, Frames, Message};

/// PMI-2's frames may be so long.
const MAX_TWO: usize = 256 << 10;

fn read(bytes: &[u8], cut: usize) -> (Vec<Frame>, bool) {
    let (mut frames, mut seen) = (Frames::default(), Vec::new());
    for part in bytes.chunks(cut) {
        frames.push(part);
        loop {
            match frames.frame() {
                Ok(Some(frame)) => seen.push(frame),
                Ok(None) => break,
                Err(_) => return (seen, true),
            }
        }
    }
    (seen, false)
}

fn again(message: &Message, protocol: Protocol) {
    let bytes = message.encode(protocol);
    if protocol == Protocol::Two && bytes.len() > MAX_TWO {
        return;
    }
    let (frames, is_bad) = read(&bytes, bytes.len());
    assert!(!is_bad && frames.len() == 1, "{message:?}: {frames:?}");
    assert_eq!(Message::parse(&frames[0]).as_ref(), Ok(message));
}

fuzz_target!(|bytes: &[u8]| {
    modest(bytes, || {
        let whole = read(bytes, bytes.len().max(1));
        for cut in [1, 7] {
            assert_eq!(read(bytes, cut), whole);
        }
        for frame in whole.0 {
            let Ok(message) = Message::parse(&frame) else { continue };
            match frame {
                Frame::Line(_) => again(&message, Protocol::One),
                Frame::Two(_) => again(&message, Protocol::Two),
                // We send none.
                Frame::Block(_) => {}
            }
        }
    });
});
