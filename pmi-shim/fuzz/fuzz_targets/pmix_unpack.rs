//! Bytes as packed PMIx data: what is read, when packed again, is read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use made::memory::{modest, modest_of};
use pmi_shim::job::MAX_RANKS;
use pmi_shim::pmix::command::Request;
use pmi_shim::pmix::job::{pack, unpack};
use pmi_shim::pmix::{Reader, Writer, find};

/// A reader takes what it says that it does not know as something simpler: after that nothing more may change.
fn settled<T: PartialEq + std::fmt::Debug>(
    first: Option<T>,
    pack: impl Fn(&T) -> Vec<u8>,
    parse: impl Fn(&[u8]) -> Option<T>,
) {
    let Some(first) = first else { return };
    let bytes = pack(&first);
    let second = parse(&bytes).unwrap_or_else(|| panic!("{first:?} is not read again"));
    assert_eq!(pack(&second), bytes, "{first:?} becomes {second:?}");
}

/// Answers how many ranks were told of.
fn job(bytes: &[u8]) -> usize {
    let Ok(told) = unpack(bytes) else { return MAX_RANKS as usize };
    let ranks = told.nodes.iter().map(|(_, ranks)| ranks.len()).sum();
    let Ok(job) = told.job(0) else { return ranks };
    assert_eq!((job.appnum.len(), job.hosts.len()), (job.node_of.len(), job.nodes() as usize));
    for rank in [0, job.size() - 1] {
        let job = told.job(rank).expect("it has a place");
        let again = unpack(&pack(&job, rank, &job.id, None)).map(|told| told.job(rank));
        let again = again.expect("read").expect("complete");
        assert_eq!((again.node_of, again.hosts, again.node), (job.node_of, job.hosts, job.node));
    }
    ranks
}

fuzz_target!(|bytes: &[u8]| {
    modest(bytes, || {
        let kval = |b: &[u8]| Reader::new(b).kval().ok();
        settled(kval(bytes), |i| Writer::new().kval(&i.key, &i.value).into_bytes(), kval);
        let infos = |b: &[u8]| Reader::new(b).infos().ok();
        settled(infos(bytes), |i| Writer::new().infos(i).into_bytes(), infos);
        let pdata = |b: &[u8]| Reader::new(b).pdata().ok();
        settled(pdata(bytes), |p| Writer::new().pdata(p).into_bytes(), pdata);
        let procs = |b: &[u8]| Reader::new(b).procs().ok();
        settled(procs(bytes), |p| Writer::new().procs(p).into_bytes(), procs);
        let request = |b: &[u8]| Request::parse(b).ok();
        settled(request(bytes), |r| r.pack(0), request);
        let _ = find(&mut Reader::new(bytes), "hpcl.1");
        let _ = (
            Reader::new(bytes).string(),
            Reader::new(bytes).size(),
            Reader::new(bytes).bytes(),
            Reader::new(bytes).buffer(),
        );
    });
    modest_of(bytes, || job(bytes));
});
