//! A connection as its bytes, for requests that no HTTP library would send. Never repeats a request, never follows anything.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::{PATIENCE, Relay};

/// The Basic credentials of the write key `KEY12345`.
pub(crate) const CREDENTIALS: &str = "Authorization: Basic S0VZMTIzNDU6";

/// A connection to the ingest listener.
pub(crate) struct Wire {
    stream: BufReader<TcpStream>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Wire {
    pub(crate) fn connect(relay: &Relay) -> Wire {
        let address = relay.ingest.strip_prefix("http://").expect("a URL");
        let stream = TcpStream::connect(address).expect("it listens");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a pause of more than nothing");
        Wire {
            stream: BufReader::new(stream),
        }
    }

    /// Sends bytes. The other end may stop reading once it has heard enough, which its answer tells.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.get_mut().write_all(bytes.as_ref());
    }

    /// Sends a byte each time this has passed without an answer, and returns the answer.
    pub(crate) fn drip(&mut self, bytes: &[u8], every: Duration) -> Option<Answer> {
        let is_unanswered = |wire: &mut Wire| wire.stream.fill_buf().is_err();
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(every)).expect("a pause");
        for byte in bytes {
            self.send([*byte]);
            if !is_unanswered(self) {
                break;
            }
        }
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(PATIENCE)).expect("a pause");
        self.answer()
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish(&mut self) {
        let _ = self.stream.get_mut().shutdown(Shutdown::Write);
    }

    /// The next answer, or `None` where the connection ends first.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let mut answer = Answer {
            status: status.expect("a status line"),
            headers: Vec::new(),
            body: Vec::new(),
        };
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                assert!(line.is_empty(), "no header: {line}");
                break;
            };
            answer
                .headers
                .push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let length = answer.header("content-length").map(str::parse);
        answer.body = vec![0; length.map_or(0, |length| length.expect("a length"))];
        self.stream.read_exact(&mut answer.body).ok()?;
        Some(answer)
    }

    /// Whether the other end has closed the connection, or does so now. Asserts that it sends nothing more.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            // A reset closes it as well.
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(_too_slow) => return false,
        }
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
        true
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no answer: {error}"),
        }
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(header, _)| header == name);
        found.next().map(|(_, value)| value.as_str())
    }

    /// The body of a reply, each of which is a JSON object.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"));
        let body: Value = serde_json::from_slice(&self.body).expect("JSON");
        assert!(body.is_object(), "{body}");
        body
    }

    /// The code of an error, in the form that every SDK understands.
    pub(crate) fn code(&self) -> String {
        let body = self.json();
        assert_eq!(body["success"], false, "{body}");
        assert_eq!(body["error"], body["message"]);
        assert!(
            body["message"]
                .as_str()
                .is_some_and(|said| !said.is_empty())
        );
        body["code"].as_str().expect("a code").to_owned()
    }
}

/// A POST with the write key, framed by its Content-Length.
pub(crate) fn post(path: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let framing = format!("Content-Length: {}", body.len());
    let mut request = head("POST", path, &[&framing]).into_bytes();
    request.extend_from_slice(body);
    request
}

/// The head of a request with the write key and further headers.
pub(crate) fn head(method: &str, path: &str, headers: &[&str]) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{CREDENTIALS}\r\n");
    for header in headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    head + "\r\n"
}

/// The chunks of a body, without the last, empty one.
pub(crate) fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}
