use super::*;

#[test]
fn every_field_is_where_the_specification_has_it() {
    let space =
        Space { mac: Mac::new([1, 2, 3, 4, 5, 6]), link: true, announce: true, pairs: 0x0102, mtu: 9000 };
    assert_eq!(&space.bytes()[..12], [1, 2, 3, 4, 5, 6, 3, 0, 2, 1, 0x28, 0x23]);
    assert_eq!(&space.bytes()[12..], [0; 12]);
}
