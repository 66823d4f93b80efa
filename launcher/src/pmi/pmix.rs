//! A rank that speaks PMIx.

use std::time::Duration;

use pmi_shim::launcher;
use pmi_shim::pmix::command::{COLLECT, Request, scope};
use pmi_shim::pmix::handshake::{Header, Hello, Messages};
use pmi_shim::pmix::{Info, Proc, RANK_WILDCARD, Reader, Value, Writer, job, status};
use pmi_shim::wire::Malformed;

use super::{Client, Socket, Told, refused};
use crate::bridge::letters::Speaks;
use crate::environ::Environ;
use crate::error::Result;

/// The connection.
pub struct Rank {
    socket: Socket,
    messages: Messages,
    index: i32,
    tag: u32,
    nspace: String,
    told: Told,
    put: Vec<u8>,
}

impl Rank {
    /// Connects and asks for everything.
    pub fn connect(rank: &launcher::Rank, environ: &Environ) -> Result<Rank> {
        let (speaks, socket) = Socket::of_launcher(rank, environ)?;
        let Speaks::Pmix { nspace, bfrops } = speaks else {
            return Err(refused("the launcher does not speak PMIx".to_owned()));
        };
        let number = rank.rank.ok_or_else(|| refused("the launcher set no PMIX_RANK".to_owned()))?;
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        socket.send(&Hello::of_rank(&nspace, number, &bfrops, uid, gid).encode())?;
        let mut messages = Messages::default();
        let index = loop {
            match messages.welcome() {
                Some(Ok(index)) => break index,
                Some(Err(code)) => {
                    return Err(refused(format!("the launcher's PMIx server refuses us with status {code}")));
                }
                None => messages.push(&socket.receive()?),
            }
        };
        let told = Told { rank: number, protocol: "PMIx".to_owned(), ..Told::default() };
        let mut client = Rank { socket, messages, index, tag: 100, nspace, told, put: Vec::new() };
        let body = client.ask(&Request::Job)?;
        let told = job::unpack(&body).map_err(malformed)?;
        client.told.size = told.size.unwrap_or(0);
        client.told.universe = told.universe;
        client.told.appnum = told.appnum.get(&number).copied();
        client.told.job.clone_from(&told.nspace);
        let place = |(host, ranks): &(String, Vec<u32>)| format!("{host}:{ranks:?}");
        client.told.places = Some(told.nodes.iter().map(place).collect::<Vec<_>>().join(" "));
        client.told.keys = told.keys;
        client.told.keys.sort_unstable();
        client.told.keys.dedup();
        Ok(client)
    }

    fn ask(&mut self, request: &Request) -> Result<Vec<u8>> {
        self.tag += 1;
        let uid = nix::unistd::geteuid().as_raw();
        self.socket.send(&Header::frame(self.index, self.tag, &request.pack(uid)))?;
        loop {
            // Events of the server's come in between.
            while let Some((header, body)) = self.messages.message().map_err(malformed)? {
                if header.tag == self.tag {
                    return Ok(body);
                }
            }
            let bytes = self.socket.receive()?;
            self.messages.push(&bytes);
        }
    }

    fn good(&mut self, request: &Request, what: &str) -> Result<Vec<u8>> {
        let body = self.ask(request)?;
        match Reader::new(&body).status().map_err(malformed)? {
            status::SUCCESS => Ok(body),
            code => Err(refused(format!("the launcher's PMIx server: {what} failed with status {code}"))),
        }
    }
}

fn malformed(e: Malformed) -> crate::error::Error {
    refused(format!("the launcher's server: {e}"))
}

impl Client for Rank {
    fn told(&self) -> &Told {
        &self.told
    }

    fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        self.put = Writer::new().raw(&self.put).kval(key, &Value::bytes(value.to_vec())).into_bytes();
        Ok(())
    }

    fn fence(&mut self) -> Result<()> {
        let put = std::mem::take(&mut self.put);
        if !put.is_empty() {
            let parts = vec![(scope::LOCAL, put.clone()), (scope::REMOTE, put)];
            self.good(&Request::Commit(parts), "putting")?;
        }
        let procs = vec![Proc { nspace: self.nspace.clone(), rank: RANK_WILDCARD }];
        let infos = vec![Info::new(COLLECT, Value::Bool(true))];
        self.good(&Request::Fence { procs, infos }, "the fence").map(drop)
    }

    fn get(&mut self, rank: u32, key: &str) -> Result<Vec<u8>> {
        let proc = Proc { nspace: self.nspace.clone(), rank };
        let body = self.good(&Request::Get { proc, infos: Vec::new(), key: Some(key.to_owned()) }, "get")?;
        let mut r = Reader::new(&body);
        r.status().map_err(malformed)?;
        let found = pmi_shim::pmix::find(&mut r, key).map_err(malformed)?;
        found.ok_or_else(|| refused(format!("what rank {rank} put is not in what the server gave")))
    }

    fn finalize(&mut self) -> Result<()> {
        self.ask(&Request::Finalize).map(drop)
    }

    fn abort(&mut self, status: i32) -> Result<()> {
        let message = "hpc-launch pmi abort".to_owned();
        self.ask(&Request::Abort { status, message }).map(drop)
    }

    fn until_closed(&self, limit: Duration) {
        self.socket.until_closed(limit);
    }
}
