//! A server of its own process, and the plainest client that there is: what it sends is what a test wrote.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that is killed when a test is done with it.
#[derive(Debug)]
pub struct Server {
    child: Mutex<Child>,
    pub port: u16,
    /// What it has logged.
    pub log: Arc<Mutex<String>>,
}

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Server {
    /// A server that listens, with its model maybe not loaded yet.
    pub fn listening(args: &[&str]) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut child = Command::new(env!("CARGO_BIN_EXE_latten-server"))
            .args([
                "--port",
                "0",
                "--log-format",
                "json",
                "--max-batch",
                "8",
                "--page-size",
                "16",
                "--fixed-split",
                "64",
            ])
            .args(args)
            .current_dir(root)
            .env("RUST_LOG", "warn,latten_server=debug")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let mut line = String::new();
        let port = loop {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "it ended: {}", log.lock().unwrap());
            *log.lock().unwrap() += &line;
            let told: Value = serde_json::from_str(&line).unwrap();
            if let Some(local) = told["fields"]["local"].as_str() {
                break local.rsplit_once(':').unwrap().1.parse().unwrap();
            }
        };
        let copy = log.clone();
        std::thread::spawn(move || {
            while lines.read_line(&mut line).is_ok_and(|n| n > 0) {
                *copy.lock().unwrap() += &line;
                line.clear();
            }
        });
        Server { child: Mutex::new(child), port, log }
    }

    /// A server that takes requests.
    pub fn start(args: &[&str]) -> Self {
        let server = Self::listening(args);
        server.wait_for("a model", || server.get("/health").is_some_and(|reply| reply.status == 200));
        server
    }

    pub fn wait_for(&self, what: &str, is_there: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_there() {
            assert!(begun.elapsed() < PATIENCE, "no {what}: {}", self.log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn id(&self) -> u32 {
        self.child.lock().unwrap().id()
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for its end.
    pub fn end(&self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.lock().unwrap().try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it goes on: {}", self.log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes as they are, and reads until the server ends the connection.
    pub fn raw(&self, bytes: &[u8]) -> Option<Reply> {
        let mut stream = self.connect();
        // A server that refuses what it has not read yet may end the connection first.
        let _ = stream.write_all(bytes);
        read(&mut stream)
    }

    pub fn get(&self, path: &str) -> Option<Reply> {
        self.raw(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes())
    }

    pub fn post_bytes(&self, path: &str, headers: &str, body: &[u8]) -> Option<Reply> {
        self.raw(&request(path, headers, body))
    }

    /// Posts JSON.
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_bytes(path, "", body.to_string().as_bytes()).unwrap()
    }

    /// The beginning of a stream.
    pub fn open(&self, path: &str, body: &Value) -> Stream {
        let mut stream = self.connect();
        stream.write_all(&request(path, "", body.to_string().as_bytes())).unwrap();
        Stream { lines: BufReader::new(stream) }
    }

    /// One of the metrics.
    pub fn metric(&self, name: &str) -> f64 {
        let reply = self.get("/metrics").unwrap();
        let text = String::from_utf8(reply.body).unwrap();
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.map_or(0.0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
    }

    /// Bytes of memory that it has now.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() << 10
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// One server for the tests that run at once and want nothing of their own.
pub fn shared() -> Arc<Server> {
    static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap();
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(Server::start(&[]));
        *shared = Arc::downgrade(&server);
        server
    })
}

pub fn request(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let kind = if headers.contains("content-type") { "" } else { "content-type: application/json\r\n" };
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{kind}{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn read(stream: &mut TcpStream) -> Option<Reply> {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let end = all.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = String::from_utf8(all[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.into()))
        .collect();
    let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = if chunked { joined(&all[end + 4..]) } else { all[end + 4..].to_vec() };
    Some(Reply { status, headers, body })
}

/// What chunks hold.
fn joined(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|bytes| bytes == b"\r\n") {
        let n = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        let from = end + 2;
        body.extend(&rest[from..(from + n).min(rest.len())]);
        rest = rest.get(from + n + 2..).unwrap_or_default();
    }
    body
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The data of its events.
    pub fn events(&self) -> Vec<String> {
        let text = String::from_utf8(self.body.clone()).unwrap();
        text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).map(str::to_string).collect()
    }
}

/// Events as they come.
#[derive(Debug)]
pub struct Stream {
    lines: BufReader<TcpStream>,
}

impl Stream {
    /// The next event's data; none at the end.
    pub fn next(&mut self) -> Option<String> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(data.trim_end().into());
            }
        }
    }

    /// All that is left.
    pub fn rest(mut self) -> Vec<String> {
        std::iter::from_fn(|| self.next()).collect()
    }

    /// Says that nothing more will be sent, but reads on.
    pub fn half_close(&self) {
        self.lines.get_ref().shutdown(Shutdown::Write).unwrap();
    }
}
