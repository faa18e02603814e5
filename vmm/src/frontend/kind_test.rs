use super::*;

fn blk(capacity: u64, queues: u16) -> Offer {
    let mut config = vec![0; BLK_CONFIG as usize];
    config[..8].copy_from_slice(&capacity.to_le_bytes());
    config[BLK_NUM_QUEUES..BLK_NUM_QUEUES + 2].copy_from_slice(&queues.to_le_bytes());
    Offer { features: RING | BLK_MQ, queues, sizes: vec![256; queues.into()], config, inflight: true }
}

fn refusal(now: &Offer, accepted: Option<u64>) -> String {
    Kind::Blk.compare(&blk(100, 2), now, accepted).unwrap_err().to_string()
}

#[test]
fn a_returning_backend_may_offer_more_not_less() {
    let same = blk(100, 2);
    Kind::Blk.compare(&same, &same, None).unwrap();
    let more = Offer { features: same.features | 1, queues: 2, ..same.clone() };
    Kind::Blk.compare(&same, &more, None).unwrap();
    let fewer = Offer { features: same.features & !F_EVENT_IDX, ..same.clone() };
    assert!(refusal(&fewer, None).contains("lacks features that the guest uses: EVENT_IDX"));
    // Only what the guest uses counts.
    Kind::Blk.compare(&same, &fewer, Some(F_VERSION_1)).unwrap();
    assert!(refusal(&Offer { queues: 1, ..same.clone() }, None).contains("1 queues, not 2"));
    assert!(refusal(&Offer { sizes: vec![256, 128], ..same.clone() }, None).contains("in queue 1"));
    assert!(refusal(&Offer { inflight: false, ..same }, None).contains("INFLIGHT_SHMFD"));
}

#[test]
fn a_returning_disk_has_its_capacity() {
    assert!(refusal(&blk(50, 2), None).contains("capacity of 50 sectors, not 100"));
    let mut other = blk(100, 2);
    other.config[20] = 1;
    assert!(refusal(&other, None).contains("byte 20"));
    other = blk(100, 2);
    other.config[BLK_WRITEBACK] = 1;
    Kind::Blk.compare(&blk(100, 2), &other, None).unwrap();
    other.config.clear();
    assert!(refusal(&other, None).contains("another configuration"));
}

#[test]
fn a_card_without_a_backend_configuration_gets_ours() {
    let mac = [2, 0, 0, 0, 0, 1];
    let mut offer = Offer {
        features: RING | NET_CONTROL | NET_MQ | 1,
        queues: 0,
        sizes: Vec::new(),
        config: Vec::new(),
        inflight: false,
    };
    offer.net(Some(8), None, Some(mac), false).unwrap();
    assert_eq!(offer.queues, 2);
    assert_eq!(offer.features, RING | NET_MAC | 1);
    assert_eq!(offer.config[..6], mac);
    assert_eq!(offer.config.len(), NET_CONFIG as usize);
}

#[test]
fn the_control_queue_is_behind_all_pairs() {
    let mut config = vec![0; NET_CONFIG as usize];
    config[NET_PAIRS_AT] = 4;
    let offer = Offer {
        features: RING | NET_MQ | NET_CTRL_VQ,
        queues: 0,
        sizes: Vec::new(),
        config,
        inflight: false,
    };
    let mut card = offer.clone();
    card.net(Some(9), Some(2), None, true).unwrap();
    assert_eq!(card.queues, 9);
    offer.clone().net(Some(9), Some(5), None, true).unwrap_err();
    offer.clone().net(Some(8), Some(2), None, true).unwrap_err();
    let mut single = Offer { features: RING | NET_CTRL_VQ, ..offer };
    single.net(None, None, None, true).unwrap();
    assert_eq!(single.queues, 3);
}

#[test]
fn numbers_beyond_reason_are_refused() {
    for (asked, offered) in [(0, 8), (9, 8), (257, u64::MAX), (u64::MAX, u64::MAX)] {
        assert!(matches!(enough(asked, offered), Err(OfferError::Queues { .. })), "{asked} {offered}");
    }
    assert_eq!(enough(256, u64::MAX).unwrap(), 256);
}
