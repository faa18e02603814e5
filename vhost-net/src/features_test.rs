use super::*;

#[test]
fn one_pair_has_no_mq_and_a_plain_tap_no_uso() {
    assert_eq!(offered(1, false, false) & (MQ | HOST_USO | GUEST_USO4 | MTU), 0);
    assert_eq!(offered(2, true, true) & (MQ | HOST_USO | MTU), MQ | HOST_USO | MTU);
}

#[test]
fn segments_need_the_checksum_offload() {
    assert_eq!(tap_offloads(GUEST_TSO4 | GUEST_TSO6), 0);
    assert_eq!(tap_offloads(GUEST_CSUM | GUEST_TSO4), offload::CSUM | offload::TSO4);
}

#[test]
fn ecn_alone_and_half_of_uso_are_not_passed_on() {
    assert_eq!(tap_offloads(GUEST_CSUM | GUEST_ECN), offload::CSUM);
    assert_eq!(tap_offloads(GUEST_CSUM | GUEST_USO4), offload::CSUM);
    assert_eq!(
        tap_offloads(GUEST_CSUM | GUEST_USO4 | GUEST_USO6),
        offload::CSUM | offload::USO4 | offload::USO6
    );
}
