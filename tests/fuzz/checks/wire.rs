//! Any bytes as each header: views never panic, never reach outside, and agree with their own bytes.

use ringway::path::icmp::too_big;
use ringway::wire::checksum::Sum;
use ringway::wire::ip::Ip;
use ringway::wire::message::DataHeader;
use ringway::wire::tcp::Tcp;
use ringway::wire::udp::Udp;
use ringway::wire::vnet::VnetHeader;

/// Panics when something does not hold.
pub(crate) fn check(data: &[u8]) {
    checksum(data);
    ip(data);
    if let Some(tcp) = Tcp::parse(data) {
        assert_eq!(tcp.header_len() + tcp.payload().len(), data.len());
        let _ = (
            tcp.source_port(),
            tcp.destination_port(),
            tcp.seq(),
            tcp.flags(),
            tcp.checksum(),
        );
    }
    if let Some(udp) = Udp::parse(data) {
        assert_eq!(udp.payload().len() + 8, data.len());
        let _ = (udp.source_port(), udp.destination_port(), udp.length(), udp.checksum());
    }
    if let Some((header, packet)) = VnetHeader::split(data) {
        assert_eq!([&header.bytes(), packet].concat(), data);
    }
    if let Some(header) = DataHeader::parse(data) {
        assert_eq!(header.bytes(), data[..16]);
    }
}

fn checksum(data: &[u8]) {
    let slow = data.chunks(2).fold(0u16, |sum, pair| {
        let (sum, carry) = sum.overflowing_add(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum + u16::from(carry)
    });
    assert_eq!(Sum::of(data).fold(), slow);
}

fn ip(data: &[u8]) {
    let Some(ip) = Ip::parse(data) else {
        assert_eq!(too_big(data, 1280), None);
        return;
    };
    assert!(data.starts_with(ip.bytes()));
    let _ = (ip.source(), ip.destination(), ip.traffic_class());
    assert!(ip.upper().start <= ip.bytes().len());
    if let Some((start, offset)) = ip.checksum_field() {
        assert!(start + offset + 2 <= ip.bytes().len());
    }
    let Some(error) = too_big(data, 1280) else { return };
    let answer = Ip::parse(&error).expect("an error is a packet");
    assert_eq!(answer.bytes().len(), error.len());
    assert_eq!((answer.source(), answer.destination()), (ip.destination(), ip.source()));
    let upper = Sum::of(&error[answer.upper().start..]);
    match answer {
        Ip::V4(_) => assert!(Sum::of(&error[..20]).is_intact() && upper.is_intact()),
        Ip::V6(_) => assert!(
            Sum::pseudo(&error[8..40], 58)
                .word((error.len() - 40) as u16)
                .plus(upper)
                .is_intact()
        ),
    }
    assert_eq!(too_big(&error, 1280), None, "errors are not answered");
}
