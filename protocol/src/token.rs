//! The join token: one line of text that lets one host into one cluster.
//!
//! `vtj1_` and Crockford's base32 of version, length, header check, cluster id, CA digest, token id, secret, expiry,
//! addresses and checksum. The secret is wiped from memory when dropped and is never printed. The cluster keeps only
//! [`Secret::hash`]. Whether a token is still good is the cluster's decision, not this module's.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::error::{ErrorCode, Report};
use crate::ids::{ClusterId, Digest, TokenId};

/// What every token begins with; secret scanners look for it.
pub const PREFIX: &str = "vtj1_";
/// Most addresses in a token.
pub const ADDRESSES_MAX: usize = 5;

const LAYOUT: u8 = 1;
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const CHECK_LEN: usize = 4;
/// Version, length, header check.
const HEADER_LEN: usize = 3;
/// Longest token text read, in bytes.
const TEXT_MAX: usize = 600;

/// The secret half of a token. Never printed; wiped when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
pub struct Secret([u8; 16]);

impl Secret {
    /// A fresh random secret.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The secret that follows from a key and a context: made again, it is the same one, and it is stored nowhere.
    pub fn derived(key: &[u8; 32], context: &[u8]) -> Self {
        let mut secret = [0; 16];
        secret.copy_from_slice(&blake3::keyed_hash(key, context).as_bytes()[..16]);
        Self(secret)
    }

    /// What the cluster stores and compares; the secret does not follow from it.
    pub fn hash(&self) -> Digest {
        Digest(blake3::derive_key("vtmesh 2026 join token secret", &self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// BLAKE3 of the cluster CA's certificate: the fingerprint that is shown, the same, on every host and at every step.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CaDigest(pub [u8; 32]);

impl CaDigest {
    /// The digest of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Self {
        Self(Digest::of(certificate).0)
    }
}

impl fmt::Display for CaDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Digest(self.0).fmt(f)
    }
}

impl fmt::Debug for CaDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A join token, decoded. Its text form, with the secret, comes only from [`Token::reveal`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// The CA its holder pins.
    pub ca: CaDigest,
    /// Its public half.
    pub id: TokenId,
    /// Its secret half.
    pub secret: Secret,
    /// When it ends, in unix seconds. The cluster decides by its own clock; this copy is for display.
    pub expires: u64,
    /// Where hosts of the cluster listen, to be tried in order; 1 to 5.
    pub addresses: Vec<SocketAddr>,
}

/// Why a text is not a usable token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It does not begin with the prefix.
    #[error("this is not a join token: it does not begin with {PREFIX}")]
    NotAToken,
    /// It begins well and ends early.
    #[error("the join token is cut short: {found} of {want} characters")]
    Truncated {
        /// Characters there, without the prefix.
        found: usize,
        /// Characters wanted, without the prefix.
        want: usize,
    },
    /// A character or more is wrong.
    #[error("the join token is garbled: {0}")]
    Garbled(&'static str),
    /// It was made by a build whose layout this one does not know.
    #[error("the join token has layout {0}; this build reads layout {LAYOUT}")]
    UnknownVersion(u8),
}

impl TokenError {
    /// As a user meets it.
    pub fn report(&self) -> Report {
        let code = match self {
            TokenError::UnknownVersion(_) => ErrorCode::WireVersion,
            _ => ErrorCode::TokenGarbled,
        };
        let title = match self {
            TokenError::NotAToken => "this is not a join token",
            TokenError::Truncated { .. } => "the join token is cut short",
            TokenError::Garbled(_) => "the join token is garbled",
            TokenError::UnknownVersion(_) => "the join token was made by a newer build",
        };
        Report::new(code, title)
            .with("reason", self.to_string())
            .help("copy the whole line that `vtctl cluster token create` printed")
    }
}

impl Token {
    /// The text form, secret included: print it once, to the one who asked.
    ///
    /// Addresses beyond [`ADDRESSES_MAX`] are left out.
    pub fn reveal(&self) -> String {
        let mut body = Vec::with_capacity(160);
        body.extend_from_slice(&[LAYOUT, 0, 0]);
        body.extend_from_slice(&self.cluster.0.to_be_bytes());
        body.extend_from_slice(&self.ca.0);
        body.extend_from_slice(&self.id.0.to_be_bytes());
        body.extend_from_slice(&self.secret.0);
        body.extend_from_slice(&self.expires.to_be_bytes());
        let addresses = &self.addresses[..self.addresses.len().min(ADDRESSES_MAX)];
        body.push(addresses.len() as u8);
        for address in addresses {
            match address.ip() {
                IpAddr::V4(ip) => {
                    body.push(4);
                    body.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    body.push(6);
                    body.extend_from_slice(&ip.octets());
                }
            }
            body.extend_from_slice(&address.port().to_be_bytes());
        }
        body[1] = u8::try_from(body.len() + CHECK_LEN).expect("5 addresses of 19 bytes and 80 fixed bytes fit");
        body[2] = header_check(body[0], body[1]);
        let check = checksum(&body);
        body.extend_from_slice(&check);
        let text = format!("{PREFIX}{}", to_base32(&body));
        body.zeroize();
        text
    }
}

impl FromStr for Token {
    type Err = TokenError;

    /// Reads the text form. Upper case, look-alikes (`O`, `I`, `L`) and white space from a wrapped line are forgiven.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let (head, tail) = text.split_at_checked(PREFIX.len()).ok_or(TokenError::NotAToken)?;
        if !head.eq_ignore_ascii_case(PREFIX) {
            return Err(TokenError::NotAToken);
        }
        if tail.len() > TEXT_MAX {
            return Err(TokenError::Garbled("it is too long"));
        }
        let digits: Vec<u8> = tail.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let (mut bytes, rest) = from_base32(&digits)?;
        let token = parse(&bytes, digits.len(), rest);
        bytes.zeroize();
        token
    }
}

fn parse(bytes: &[u8], digits: usize, rest: u32) -> Result<Token, TokenError> {
    let [version, len, check, ..] = *bytes else {
        return Err(TokenError::Truncated { found: digits, want: digits_for(HEADER_LEN + 80) });
    };
    if header_check(version, len) != check {
        return Err(TokenError::Garbled("its first characters are wrong"));
    }
    if version != LAYOUT {
        return Err(TokenError::UnknownVersion(version));
    }
    let len = usize::from(len);
    if digits < digits_for(len) || bytes.len() < len {
        return Err(TokenError::Truncated { found: digits, want: digits_for(len) });
    }
    if digits > digits_for(len) || rest != 0 || len < HEADER_LEN + CHECK_LEN {
        return Err(TokenError::Garbled("something follows its end"));
    }
    let (body, check) = bytes.split_at(len - CHECK_LEN);
    if checksum(body) != check {
        return Err(TokenError::Garbled("its checksum does not match"));
    }
    let mut fields = Fields(&body[HEADER_LEN..]);
    let cluster = ClusterId(u64::from_be_bytes(fields.take()?));
    let ca = CaDigest(fields.take()?);
    let id = TokenId(u64::from_be_bytes(fields.take()?));
    let secret = Secret(fields.take()?);
    let expires = u64::from_be_bytes(fields.take()?);
    let [count] = fields.take()?;
    if count == 0 || usize::from(count) > ADDRESSES_MAX {
        return Err(TokenError::Garbled("it holds no usable number of addresses"));
    }
    let addresses = (0..count).map(|_| fields.address()).collect::<Result<_, _>>()?;
    if !fields.0.is_empty() {
        return Err(TokenError::Garbled("something follows its addresses"));
    }
    Ok(Token { cluster, ca, id, secret, expires, addresses })
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], TokenError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(TokenError::Garbled("a field is missing"))?;
        self.0 = tail;
        Ok(*head)
    }

    fn address(&mut self) -> Result<SocketAddr, TokenError> {
        let ip = match self.take()? {
            [4] => IpAddr::V4(Ipv4Addr::from(self.take::<4>()?)),
            [6] => IpAddr::V6(Ipv6Addr::from(self.take::<16>()?)),
            _ => return Err(TokenError::Garbled("an address is of no known kind")),
        };
        Ok(SocketAddr::new(ip, u16::from_be_bytes(self.take()?)))
    }
}

fn header_check(version: u8, len: u8) -> u8 {
    blake3::hash(&[b'v', b't', b'j', version, len]).as_bytes()[0]
}

fn checksum(body: &[u8]) -> [u8; CHECK_LEN] {
    let mut check = [0; CHECK_LEN];
    check.copy_from_slice(&blake3::hash(body).as_bytes()[..CHECK_LEN]);
    check
}

fn digits_for(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

fn to_base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(digits_for(bytes.len()));
    let (mut bits, mut held) = (0u32, 0u32);
    for byte in bytes {
        held = (held << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(ALPHABET[(held >> bits & 31) as usize]));
        }
    }
    if bits > 0 {
        text.push(char::from(ALPHABET[(held << (5 - bits) & 31) as usize]));
    }
    text
}

/// The bytes, and the bits of the last digit that make no byte: zero in what [`to_base32`] wrote.
fn from_base32(digits: &[u8]) -> Result<(Vec<u8>, u32), TokenError> {
    let mut bytes = Vec::with_capacity(digits.len() * 5 / 8);
    let (mut bits, mut held) = (0u32, 0u32);
    for digit in digits {
        let plain = match digit.to_ascii_lowercase() {
            b'o' => b'0',
            b'i' | b'l' => b'1',
            other => other,
        };
        let value = ALPHABET.iter().position(|letter| *letter == plain);
        let value = value.ok_or(TokenError::Garbled("a character does not belong in a token"))?;
        held = ((held << 5) | value as u32) & 0xffff;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
        }
    }
    Ok((bytes, held & ((1 << bits) - 1)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> Token {
        Token {
            cluster: ClusterId(0x9f41_77c2),
            ca: CaDigest::of(b"a certificate"),
            id: TokenId(77),
            secret: Secret([0xa5; 16]),
            expires: 1_795_000_000,
            addresses: vec!["10.20.0.11:7465".parse().unwrap(), "[fd00::7]:7465".parse().unwrap()],
        }
    }

    #[test]
    fn a_token_is_one_line_and_comes_back() {
        let text = token().reveal();
        assert!(text.starts_with("vtj1_") && text.len() <= 290, "{} characters", text.len());
        assert!(text[5..].bytes().all(|b| ALPHABET.contains(&b)), "{text}");
        assert_eq!(text.parse::<Token>().unwrap(), token());
        let retyped = format!(" {}\n{} ", text[..40].to_uppercase(), text[40..].replace('0', "O").replace('1', "l"));
        assert_eq!(retyped.parse::<Token>().unwrap(), token(), "case, look-alikes and a wrapped line are forgiven");
    }

    #[test]
    fn a_token_has_a_golden_text() {
        let ca = CaDigest([0x5b; 32]);
        let text = Token { ca, addresses: vec!["10.20.0.11:7465".parse().unwrap()], ..token() }.reveal();
        let golden = "vtj1_05btw0000009ygbqr9dnpptvbddnpptvbddnpptvbddnpptvbddnpptvbddnpptvbddnp\
                      000000000009pjtb9d5mpjtb9d5mpjtb9d5mpjg000001nfv1p00420m5001cejj1qe6ghg";
        assert_eq!(text, golden, "tokens of older builds must stay readable");
    }

    #[test]
    fn the_secret_is_never_printed() {
        let shown = format!("{:?}", token());
        assert!(shown.contains("Secret(…)") && !shown.contains("165, 165") && !shown.contains("a5a5"), "{shown}");
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        let text = token().reveal();
        assert_eq!("hello".parse::<Token>().unwrap_err(), TokenError::NotAToken);
        assert_eq!("".parse::<Token>().unwrap_err(), TokenError::NotAToken);
        assert_eq!("vtj2_abc".parse::<Token>().unwrap_err(), TokenError::NotAToken);
        assert_eq!("vtéé_abc".parse::<Token>().unwrap_err(), TokenError::NotAToken);
        for cut in PREFIX.len()..text.len() {
            let error = text[..cut].parse::<Token>().unwrap_err();
            assert!(matches!(error, TokenError::Truncated { .. }), "cut at {cut}: {error}");
        }
        assert!(matches!(format!("{text}0").parse::<Token>(), Err(TokenError::Garbled(_))));
        assert!(matches!(format!("{text}!").parse::<Token>(), Err(TokenError::Garbled(_))));
        for at in PREFIX.len()..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'7' { b'8' } else { b'7' };
            let error = String::from_utf8(bytes).unwrap().parse::<Token>().unwrap_err();
            assert!(matches!(error, TokenError::Garbled(_)), "changed at {at}: {error}");
        }
    }

    #[test]
    fn a_layout_of_the_future_is_named() {
        let mut body = vec![2, 40, 0];
        body[2] = header_check(2, 40);
        body.resize(40, 0);
        let text = format!("{PREFIX}{}", to_base32(&body));
        assert_eq!(text.parse::<Token>().unwrap_err(), TokenError::UnknownVersion(2));
    }

    proptest! {
        #[test]
        fn any_token_comes_back(
            cluster in any::<u64>(), ca in any::<[u8; 32]>(), id in any::<u64>(), secret in any::<[u8; 16]>(),
            expires in any::<u64>(), addresses in proptest::collection::vec(any::<SocketAddr>(), 1..=ADDRESSES_MAX),
        ) {
            // Flow label and scope are of no use to another host and do not travel.
            let addresses = addresses.iter().map(|a| SocketAddr::new(a.ip(), a.port())).collect();
            let token = Token {
                cluster: ClusterId(cluster), ca: CaDigest(ca), id: TokenId(id), secret: Secret(secret), expires, addresses,
            };
            prop_assert_eq!(token.reveal().parse::<Token>().unwrap(), token);
        }

        #[test]
        fn random_text_never_panics(text in ".{0,300}") {
            let _ = text.parse::<Token>();
            let _ = format!("{PREFIX}{text}").parse::<Token>();
        }

        #[test]
        fn random_base32_never_panics(text in "[0-9a-z]{0,300}") {
            let read = format!("{PREFIX}{text}").parse::<Token>();
            prop_assert!(read.is_err());
        }
    }
}
