//! vhost-net
