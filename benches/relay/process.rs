//! The processes of a run: started, asked what they took, and killed in the end. What they took is read in /proc.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;

use serde_json::Value;

use crate::floor;
use crate::load::{self, Form, Outcome};

/// The program that is measured.
pub(crate) const SEGSPOOL: &str = env!("CARGO_BIN_EXE_segspool");
/// What Linux tells programs, whatever it counts in itself.
const TICKS_PER_SECOND: u64 = 100;

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

/// What a process has taken so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_us: u64,
    /// What it caused to be written to the disk.
    pub(crate) written_bytes: u64,
}

impl std::ops::Sub for Usage {
    type Output = Usage;

    fn sub(self, before: Usage) -> Usage {
        Usage {
            cpu_us: self.cpu_us - before.cpu_us,
            written_bytes: self.written_bytes - before.written_bytes,
        }
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, more: Usage) {
        self.cpu_us += more.cpu_us;
        self.written_bytes += more.written_bytes;
    }
}

impl Process {
    fn start(command: &mut Command) -> Process {
        let child = command.stdin(Stdio::null()).spawn();
        Process {
            child: child.expect("the program is there"),
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        let stat = self.read("stat");
        // The name in parentheses may hold anything; behind it, fields 14 and 15 of the line are ticks of CPU.
        let (_, fields) = stat.rsplit_once(") ").expect("the name is in parentheses");
        let ticks = fields.split(' ').skip(11).take(2);
        let ticks: u64 = ticks.map(|n| n.parse::<u64>().expect("a number")).sum();
        Usage {
            cpu_us: ticks * 1_000_000 / TICKS_PER_SECOND,
            written_bytes: self.field("io", "write_bytes"),
        }
    }

    /// The most memory it has had so far, in bytes.
    pub(crate) fn peak_memory_bytes(&self) -> u64 {
        self.field("status", "VmHWM") * 1024
    }

    /// The memory it has, in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.field("status", "VmRSS") * 1024
    }

    /// How often its threads have gone to sleep so far, by their names and numbers: each time ends in a wake-up.
    pub(crate) fn sleeps(&self) -> BTreeMap<String, u64> {
        let tasks = fs::read_dir(self.path("task")).expect("the process is alive");
        let sleeps = tasks.flatten().filter_map(|task| {
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            let field = |name| field(&status, name);
            let name = format!("{}/{}", field("Name")?, field("Pid")?);
            Some((name, field("voluntary_ctxt_switches")?.parse().ok()?))
        });
        sleeps.collect()
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        // An error says that it is gone.
        let _ = self.child.kill();
        self.child.wait().expect("it can be waited for");
    }

    fn field(&self, file: &str, name: &str) -> u64 {
        let text = self.read(file);
        let value = field(&text, name).expect("the kernel says it");
        let number = value.trim_end_matches(" kB").parse();
        number.expect("a number")
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).expect("the process is alive")
    }

    fn path(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(found, _)| *found == name)?;
    Some(value.trim())
}

/// A floor, (a) or (b).
pub(crate) fn floor(file: Option<&Path>) -> (Process, SocketAddr) {
    let mut command = own(floor::ROLE);
    command.args(file).stdout(Stdio::piped());
    let mut process = Process::start(&mut command);
    let address = Lines::of(&mut process).next();
    (process, address.parse().expect("an address"))
}

/// The daemon.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) process: Process,
    pub(crate) ingest: SocketAddr,
    admin: SocketAddr,
}

impl Relay {
    /// Starts it as it is by default, with free ports, its spool in `data_dir` and Segment at `segment`. Returns once it listens.
    pub(crate) fn start(data_dir: &Path, segment: SocketAddr) -> Relay {
        let mut command = Command::new(SEGSPOOL);
        command.arg("serve").stderr(Stdio::piped());
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            let is_proxy = name.to_ascii_lowercase().ends_with("_proxy");
            if is_proxy || name.starts_with("SEGSPOOL_") || name == "RUST_LOG" {
                command.env_remove(&*name);
            }
        }
        command
            .env("SEGSPOOL_DATA_DIR", data_dir)
            .env("SEGSPOOL_INGEST__LISTEN", "[\"127.0.0.1:0\"]")
            .env("SEGSPOOL_ADMIN__LISTEN", "127.0.0.1:0")
            .env("SEGSPOOL_SEGMENT__ENDPOINT", format!("http://{segment}"))
            .env("SEGSPOOL_LOG__FORMAT", "json");
        let mut process = Process::start(&mut command);
        let log = process.child.stderr.take().expect("it is piped");
        let mut log = BufReader::new(log);
        let running = loop {
            let mut line = String::new();
            let read = log.read_line(&mut line).expect("the log can be read");
            assert!(read > 0, "the daemon runs");
            let line: Value = serde_json::from_str(&line).expect("a line of JSON");
            if line["message"] == "segspool is running" {
                break line;
            }
        };
        // It would stop at a pipe that is full.
        thread::spawn(move || io::copy(&mut log, &mut io::sink()));
        let address = |name: &str| {
            let address = running[name].as_str().expect("an address");
            address.parse().expect("an address")
        };
        Relay {
            process,
            ingest: address("ingest"),
            admin: address("admin"),
        }
    }

    /// Events that wait to be delivered.
    pub(crate) fn queued_events(&self) -> u64 {
        let stats = get(self.admin, "/stats");
        stats["queue"]["events"].as_u64().expect("a number")
    }
}

/// The pretend Segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) process: Process,
    address: SocketAddr,
}

/// What it has counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) events: u64,
    pub(crate) duplicate_events: u64,
    pub(crate) mean_fill: f64,
}

impl Segment {
    /// Starts it, and returns once it listens.
    pub(crate) fn start(address: SocketAddr) -> Segment {
        let mut command = Command::new(SEGSPOOL);
        command.arg("stand-in").arg("--listen");
        command.arg(address.to_string()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command);
        Lines::of(&mut process).next();
        Segment { process, address }
    }

    pub(crate) fn tally(&self) -> Tally {
        let tally = get(self.address, "/stand-in/tally");
        let number = |name: &str| tally[name].as_u64().expect("a number");
        assert_eq!(
            tally["violations"],
            serde_json::json!({}),
            "no limit is broken"
        );
        Tally {
            events: number("events"),
            duplicate_events: number("duplicate_events"),
            mean_fill: tally["mean_fill"].as_f64().expect("a number"),
        }
    }
}

/// An address where nothing listens.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("it is bound")
}

/// The load, under way.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) process: Process,
    lines: Lines,
}

impl Load {
    /// Starts a load on `address` with what else [`load::Args`] takes.
    pub(crate) fn start(
        address: SocketAddr,
        form: Form,
        connections: usize,
        first: u64,
        others: &[(&str, u64)],
    ) -> Load {
        let mut command = own(load::ROLE);
        command.arg("--address").arg(address.to_string());
        let numbers = [
            ("--batch", form.events() as u64),
            ("--connections", connections as u64),
            ("--first", first),
        ];
        for (name, number) in numbers.iter().chain(others) {
            command.arg(name).arg(number.to_string());
        }
        let mut process = Process::start(command.stdout(Stdio::piped()));
        let lines = Lines::of(&mut process);
        Load { process, lines }
    }

    /// Returns when the clock begins to run.
    pub(crate) fn begin(&mut self) {
        assert_eq!(self.lines.next(), load::BEGIN);
    }

    /// Returns when the clock has stopped.
    pub(crate) fn end(&mut self) {
        assert_eq!(self.next_step(), None);
    }

    /// Returns when another part of the events has been posted, with how many that are; none at the end.
    pub(crate) fn next_step(&mut self) -> Option<u64> {
        let line = self.lines.next();
        (line != load::END).then(|| line.parse().expect("a number of events"))
    }

    /// What it came to, once all answers are there.
    pub(crate) fn outcome(mut self) -> Outcome {
        serde_json::from_str(&self.lines.next()).expect("an outcome")
    }
}

/// What a process says on standard output.
#[derive(Debug)]
struct Lines(BufReader<ChildStdout>);

impl Lines {
    fn of(process: &mut Process) -> Lines {
        let stdout = process.child.stdout.take();
        Lines(BufReader::new(stdout.expect("it is piped")))
    }

    fn next(&mut self) -> String {
        let mut line = String::new();
        let read = self
            .0
            .read_line(&mut line)
            .expect("the process can be heard");
        assert!(read > 0, "the process has not failed");
        line.trim_end().to_owned()
    }
}

fn own(role: &str) -> Command {
    let program = std::env::current_exe().expect("this program's own path");
    let mut command = Command::new(program);
    command.arg(role);
    command
}

fn get(address: SocketAddr, path: &str) -> Value {
    let ask = || {
        let mut stream = TcpStream::connect(address)?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, io::Error>(answer)
    };
    let answer = ask().expect("an answer");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    serde_json::from_str(body).expect("JSON")
}

/// What the files in a directory take on disk.
pub(crate) fn disk_bytes_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    // What vanishes meanwhile takes nothing.
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => disk_bytes_of(&entry.path()),
        Ok(found) => found.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}
