//! A rank that speaks PMI-1 or PMI-2.

use std::time::Duration;

use pmi_shim::launcher;
use pmi_shim::wire::message::Protocol;
use pmi_shim::wire::{Frames, Message};

use super::{Client, Socket, Told, refused};
use crate::environ::Environ;
use crate::error::Result;

/// The connection.
pub struct Rank {
    socket: Socket,
    frames: Frames,
    two: bool,
    name: String,
    told: Told,
}

impl Rank {
    /// Connects and asks for everything.
    pub fn connect(rank: &launcher::Rank, environ: &Environ, two: bool) -> Result<Rank> {
        let (_, socket) = Socket::of_launcher(rank, environ)?;
        let told = Told {
            rank: rank.rank.unwrap_or(0),
            size: rank.size.unwrap_or(0),
            protocol: if two { "PMI-2" } else { "PMI-1" }.to_owned(),
            ..Told::default()
        };
        let mut client = Rank { socket, frames: Frames::default(), two: false, name: String::new(), told };
        if environ.get("PMI_FD").is_none() {
            client.write(&Message::new("initack").with("pmiid", client.told.rank))?;
            loop {
                let line = client.read()?;
                client.told.size = line.number("size").unwrap_or(client.told.size);
                client.told.rank = line.number("rank").unwrap_or(client.told.rank);
                if line.get("debug").is_some() {
                    break;
                }
            }
        }
        let (version, subversion) = if two { (2, 0) } else { (1, 1) };
        let init = Message::new("init").with("pmi_version", version).with("pmi_subversion", subversion);
        let answer = client.ask(&init, "init")?;
        client.two = two && answer.get("pmi_version") == Some("2");
        if two && !client.two {
            return Err(refused("the launcher does not speak PMI-2".to_owned()));
        }
        client.learn()?;
        Ok(client)
    }

    fn learn(&mut self) -> Result<()> {
        if self.two {
            let full = // No empty field: hydra 4.3 does not parse one.
            Message::new("fullinit")
                .with("pmirank", self.told.rank)
                .with("threaded", "FALSE");
            let answer = self.ask(&full, "fullinit")?;
            self.told.rank = answer.number("rank").unwrap_or(self.told.rank);
            self.told.size = answer.number("size").unwrap_or(self.told.size);
            self.told.appnum = answer.number("appnum");
            let answer = self.ask(&Message::new("job-getid"), "job-getid")?;
            self.name = answer.get("jobid").unwrap_or_default().to_owned();
            self.told.job.clone_from(&self.name);
            self.told.places = self.attribute("PMI_process_mapping")?;
            self.told.universe = self.attribute("universeSize")?.and_then(|n| n.parse().ok());
            return Ok(());
        }
        self.told.value_max = self.ask(&Message::new("get_maxes"), "get_maxes")?.number("vallen_max");
        let answer = self.ask(&Message::new("get_my_kvsname"), "get_my_kvsname")?;
        self.name = answer.get("kvsname").unwrap_or_default().to_owned();
        self.told.job.clone_from(&self.name);
        self.told.appnum = self.ask(&Message::new("get_appnum"), "get_appnum")?.number("appnum");
        let universe = self.ask(&Message::new("get_universe_size"), "get_universe_size")?;
        self.told.universe = universe.number("size");
        let get = Message::new("get").with("kvsname", &self.name).with("key", "PMI_process_mapping");
        self.write(&get)?;
        let answer = self.read()?;
        let found = answer.number::<i32>("rc").unwrap_or(0) == 0;
        self.told.places = answer.get("value").filter(|_| found).map(str::to_owned);
        Ok(())
    }

    fn attribute(&mut self, key: &str) -> Result<Option<String>> {
        let answer = self.ask(&Message::new("info-getjobattr").with("key", key), "info-getjobattr")?;
        let found = answer.get("found").is_some_and(|f| f.eq_ignore_ascii_case("true"));
        Ok(answer.get("value").filter(|_| found).map(str::to_owned))
    }

    fn write(&self, message: &Message) -> Result<()> {
        self.socket.send(&message.encode(if self.two { Protocol::Two } else { Protocol::One }))
    }

    fn read(&mut self) -> Result<Message> {
        loop {
            let bad = |e: pmi_shim::wire::Malformed| refused(format!("the launcher's PMI: {e}"));
            if let Some(frame) = self.frames.frame().map_err(bad)? {
                return Message::parse(&frame).map_err(bad);
            }
            let bytes = self.socket.receive()?;
            self.frames.push(&bytes);
        }
    }

    fn ask(&mut self, message: &Message, what: &str) -> Result<Message> {
        self.write(message)?;
        let answer = self.read()?;
        match answer.number::<i32>("rc").unwrap_or(0) {
            0 => Ok(answer),
            code => Err(refused(format!("the launcher's PMI: {what} failed with {code}"))),
        }
    }
}

impl Client for Rank {
    fn told(&self) -> &Told {
        &self.told
    }

    fn put(&mut self, key: &str, value: &[u8]) -> Result<()> {
        let put = match self.two {
            true => Message::new("kvs-put"),
            false => Message::new("put").with("kvsname", &self.name),
        };
        let put = put.with("key", key).with("value", String::from_utf8_lossy(value));
        self.ask(&put, "put").map(drop)
    }

    fn fence(&mut self) -> Result<()> {
        let fence = Message::new(if self.two { "kvs-fence" } else { "barrier_in" });
        self.ask(&fence, "the barrier").map(drop)
    }

    fn get(&mut self, rank: u32, key: &str) -> Result<Vec<u8>> {
        let get = match self.two {
            true => Message::new("kvs-get").with("jobid", &self.name).with("srcid", rank),
            false => Message::new("get").with("kvsname", &self.name),
        };
        let answer = self.ask(&get.with("key", key), "get")?;
        Ok(answer.get("value").unwrap_or_default().as_bytes().to_vec())
    }

    fn finalize(&mut self) -> Result<()> {
        self.ask(&Message::new("finalize"), "finalize").map(drop)
    }

    fn abort(&mut self, status: i32) -> Result<()> {
        let abort = Message::new("abort").with("exitcode", status);
        self.write(&if self.two { abort.with("isworld", "TRUE") } else { abort })
    }

    fn until_closed(&self, limit: Duration) {
        self.socket.until_closed(limit);
    }
}
