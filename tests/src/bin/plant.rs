//! A process that has private keys in its memory, for the tests of the scan.
//!
//! `plant bytes`: reads a length (u32, big endian) and so many bytes from
//! standard input, and keeps them in memory. `plant stock FILE SUITE`: lives
//! the life of an MLS member with the stock provider and its SQLite storage in
//! FILE, in cipher suite 0x000SUITE. Both print `ready` when there is something
//! to find, and end with their input.

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::io::{self, Read};

use mlskeyd_tests::stock;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["bytes"] => {
            let mut length = [0; 4];
            io::stdin().read_exact(&mut length)?;
            let mut bytes = vec![0; u32::from_be_bytes(length).try_into()?];
            io::stdin().read_exact(&mut bytes)?;
            wait()?;
            black_box(bytes);
        }
        ["stock", file, suite] => {
            let member = stock::Member::live(file.as_ref(), suite.parse()?)?;
            wait()?;
            black_box(member);
        }
        _ => return Err("usage: plant bytes | plant stock FILE SUITE".into()),
    }
    Ok(())
}

/// Says that it is time to look, and waits for the end of the input.
fn wait() -> io::Result<()> {
    println!("ready");
    io::copy(&mut io::stdin(), &mut io::sink()).map(|_| ())
}
