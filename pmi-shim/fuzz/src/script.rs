//! A script: what is done, to whom, with which bytes. A mark parts its steps, so that a change in one leaves the
//! others as they are.

const MARK: &[u8] = b"\n~~\n";
/// More steps only cost time.
const MOST: usize = 256;

/// One step.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// A letter.
    pub what: u8,
    /// Below 16; a digit in a seed.
    pub who: u32,
    /// The rest.
    pub bytes: &'a [u8],
}

/// The steps of a script.
pub fn steps(script: &[u8]) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    let mut rest = Some(script);
    while let Some(here) = rest.filter(|_| steps.len() < MOST) {
        let end = here.windows(MARK.len()).position(|w| w == MARK);
        let step = &here[..end.unwrap_or(here.len())];
        rest = end.map(|end| &here[end + MARK.len()..]);
        if let [what, who, bytes @ ..] = step {
            steps.push(Step { what: *what, who: u32::from(*who & 15), bytes });
        }
    }
    steps
}

/// A script of these steps: letter, digit, bytes.
pub fn script(steps: &[(char, u32, Vec<u8>)]) -> Vec<u8> {
    let one = |(what, who, bytes): &(char, u32, Vec<u8>)| {
        let mut step = vec![*what as u8, b'0' + *who as u8];
        step.extend_from_slice(bytes);
        step
    };
    steps.iter().map(one).collect::<Vec<_>>().join(MARK)
}

/// Answers may be so long: each request may be answered with all that was put and with the job's data.
pub fn assert_bounded(out: usize, requests: usize, input: usize) {
    let most = (requests + 1) * (4096 + 4 * input);
    assert!(out <= most, "{out} bytes come of {requests} requests in {input} bytes, more than {most}");
}
