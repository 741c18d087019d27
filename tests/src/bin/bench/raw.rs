//! The peer of throughput: one TCP connection between two hosts of the lab, as fast as it goes.
//!
//! The bench runs itself inside the hosts' namespaces, once as the end that reads and once as the one that writes.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{Child, Stdio},
    time::Instant,
};

use anyhow::{Context as _, ensure};
use vt_tests::lab::Lab;

use crate::bare::{inside, places};

/// The words of the end that reads, and of the one that writes.
const READS: &str = "raw-read";
const WRITES: &str = "raw-write";
const PIECE: usize = 1 << 20;

/// Megabytes a second of `rounds` connections that carry so many bytes each.
pub(crate) fn measure(lab: &Lab, bytes: u64, rounds: usize) -> anyhow::Result<Vec<f64>> {
    let places = places(lab)?;
    let program = std::env::current_exe()?;
    let program = program.to_str().context("the path of this program is text")?;
    let one = || -> anyhow::Result<f64> {
        let reads = inside(&places[1], program).arg(READS).stdout(Stdio::piped()).spawn()?;
        let mut reads = Ended(reads);
        let mut port = String::new();
        BufReader::new(reads.0.stdout.take().context("its output")?).read_line(&mut port)?;
        let to = format!("{}:{}", places[1].address, port.trim());
        let wrote = inside(&places[0], program).args([WRITES, &to, &bytes.to_string()]).output()?;
        ensure!(wrote.status.success(), "{}", String::from_utf8_lossy(&wrote.stderr));
        Ok(String::from_utf8_lossy(&wrote.stdout).trim().parse()?)
    };
    (0..rounds).map(|_| one()).collect()
}

/// A process that ends with the value.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Acts as one end, where the words say so.
pub(crate) fn end(words: &[String]) -> Option<anyhow::Result<()>> {
    match words {
        [word] if word == READS => Some(read()),
        [word, to, bytes] if word == WRITES => Some(write(to, bytes)),
        _ => None,
    }
}

fn read() -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    println!("{}", listener.local_addr()?.port());
    let (mut stream, _) = listener.accept()?;
    let mut piece = vec![0; PIECE];
    while stream.read(&mut piece)? > 0 {}
    // The writer's time ends when everything has been read.
    stream.write_all(b"!")?;
    Ok(())
}

fn write(to: &str, bytes: &str) -> anyhow::Result<()> {
    let (to, bytes): (SocketAddr, u64) = (to.parse()?, bytes.parse()?);
    let mut stream = TcpStream::connect(to)?;
    let piece = vec![7; PIECE];
    let begun = Instant::now();
    for _ in 0..bytes / PIECE as u64 {
        stream.write_all(&piece)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    println!("{:.1}", (bytes / PIECE as u64 * PIECE as u64) as f64 / begun.elapsed().as_secs_f64() / 1e6);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_words_make_it_an_end() {
        let words = |text: &str| end(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert!(words("--quick").is_none() && words("").is_none());
        assert!(words("raw-write nowhere 7").is_some_and(|ended| ended.is_err()));
    }
}
