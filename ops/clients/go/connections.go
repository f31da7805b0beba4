package paywarden

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

const receiveBytes = 16 * 1024

var (
	errLate         = errors.New("there is no time left")
	errNoConnection = errors.New("no connection could be made")
	errBusy         = errors.New("all connections were in use until the deadline")
)

// connection is one connection. A call has it to itself while it uses it.
type connection struct {
	net.Conn
	tcp  net.Conn
	raw  syscall.RawConn
	used time.Time
	// received is room for what comes.
	received []byte
}

// Close closes the socket. To say so in TLS, too, may wait for five seconds on a host that does not read.
func (c *connection) Close() error { return c.tcp.Close() }

// isStale returns whether the host has closed an idle connection, or sent what nobody asked for.
func (c *connection) isStale() bool {
	if isStale(c.raw) {
		return true
	}
	if c.Conn == c.tcp {
		return false
	}
	// TLS may have read more than the answer. With a deadline in the past it gives what it has, and reads no more.
	c.SetReadDeadline(time.Unix(1, 0))
	count, err := c.Read(c.received[:1])
	return count > 0 || !errors.Is(err, os.ErrDeadlineExceeded)
}

// exchange sends a request and returns its whole answer. The error is errLate, errNoAnswer, or any other if the
// connection broke.
func (c *connection) exchange(request []byte, deadline time.Time) (*answerReader, error) {
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if _, err := c.Write(request); err != nil {
		return nil, lateOr(err)
	}
	reader := &answerReader{}
	for {
		count, err := c.Read(c.received)
		if count > 0 {
			isWhole, wrong := reader.feed(c.received[:count])
			if wrong != nil {
				return nil, wrong
			}
			if isWhole {
				return reader, nil
			}
		}
		if err == io.EOF && reader.end() {
			return reader, nil
		}
		if err != nil {
			return nil, lateOr(err)
		}
	}
}

func lateOr(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errLate
	}
	return err
}

// addresses are those of a host's name, in turn. One that could not be reached is left out for a second.
type addresses struct {
	lock   sync.Mutex
	all    []netip.AddrPort
	next   int
	failed map[netip.AddrPort]time.Time
}

func (a *addresses) set(found []netip.AddrPort) {
	a.lock.Lock()
	defer a.lock.Unlock()
	a.all = found
	// What failed of other addresses says nothing any more.
	for one := range a.failed {
		if !slices.Contains(found, one) {
			delete(a.failed, one)
		}
	}
}

// take returns the next address; one that failed if all have.
func (a *addresses) take(now time.Time) netip.AddrPort {
	a.lock.Lock()
	defer a.lock.Unlock()
	first := a.next
	for place := range a.all {
		one := a.all[(first+place)%len(a.all)]
		if failed, has := a.failed[one]; !has || now.Sub(failed) >= avoidFor {
			a.next = (first + place + 1) % len(a.all)
			return one
		}
	}
	a.next = (first + 1) % len(a.all)
	return a.all[first%len(a.all)]
}

func (a *addresses) noteFailed(one netip.AddrPort, now time.Time) {
	a.lock.Lock()
	defer a.lock.Unlock()
	if a.failed == nil {
		a.failed = map[netip.AddrPort]time.Time{}
	}
	a.failed[one] = now
}

// hostConnections are the connections to one host, the one used last taken first.
type hostConnections struct {
	target         target
	tls            *tls.Config
	idle           time.Duration
	connectTimeout time.Duration
	// places holds a token for each connection that may be in use besides.
	places chan struct{}

	lock     sync.Mutex
	kept     []*connection
	isClosed bool

	addresses addresses
	// resolved is closed once there are addresses.
	resolved     chan struct{}
	resolvedOnce sync.Once
}

func newHostConnections(one target, settings *Settings, config *tls.Config) *hostConnections {
	host := &hostConnections{
		target: one, idle: settings.Idle, connectTimeout: settings.ConnectTimeout,
		places: make(chan struct{}, settings.ConnectionsMax), resolved: make(chan struct{}),
	}
	if one.isTLS {
		host.tls = config.Clone()
		host.tls.ServerName = one.host
	}
	for range settings.ConnectionsMax {
		host.places <- struct{}{}
	}
	if address, err := netip.ParseAddr(one.host); err == nil {
		host.setAddresses([]netip.Addr{address})
	}
	return host
}

func (h *hostConnections) isNamed() bool {
	_, err := netip.ParseAddr(h.target.host)
	return err != nil
}

// setAddresses takes the addresses of the host's name. Without any, the earlier ones stay.
func (h *hostConnections) setAddresses(found []netip.Addr) {
	port, err := net.LookupPort("tcp", h.target.port)
	if err != nil || len(found) == 0 {
		return
	}
	known := make([]netip.AddrPort, len(found))
	for place, one := range found {
		known[place] = netip.AddrPortFrom(one, uint16(port))
	}
	h.addresses.set(known)
	h.resolvedOnce.Do(func() { close(h.resolved) })
}

// take returns a connection for this call alone: giveBack or drop it. isFresh: not a kept one. The error is errBusy,
// errNoConnection or errLate.
func (h *hostConnections) take(ctx context.Context, deadline time.Time, isFresh bool) (*connection, error) {
	select {
	case <-h.places:
	default:
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		select {
		case <-h.places:
		case <-timer.C:
			return nil, errBusy
		case <-ctx.Done():
			return nil, errLate
		}
	}
	for !isFresh {
		kept := h.takeKept()
		if kept == nil {
			break
		}
		if time.Since(kept.used) < h.idle && !kept.isStale() {
			return kept, nil
		}
		kept.Close()
	}
	made, err := h.connect(ctx, deadline)
	if err != nil {
		h.places <- struct{}{}
	}
	return made, err
}

func (h *hostConnections) takeKept() *connection {
	h.lock.Lock()
	defer h.lock.Unlock()
	last := len(h.kept) - 1
	if last < 0 {
		return nil
	}
	kept := h.kept[last]
	h.kept = h.kept[:last]
	return kept
}

// giveBack keeps a connection for later.
func (h *hostConnections) giveBack(one *connection) {
	one.used = time.Now()
	// A deadline that passes would keep the next call from looking whether the connection has ended.
	one.SetDeadline(time.Time{})
	h.lock.Lock()
	idle := 0
	if h.isClosed {
		h.kept, idle = append(h.kept, one), len(h.kept)+1
	} else {
		h.kept = append(h.kept, one)
		// The longest unused one is first.
		for one.used.Sub(h.kept[idle].used) >= h.idle {
			idle++
		}
	}
	leaving := append([]*connection(nil), h.kept[:idle]...)
	h.kept = h.kept[idle:]
	h.lock.Unlock()
	for _, each := range leaving {
		each.Close()
	}
	h.places <- struct{}{}
}

// drop closes a connection.
func (h *hostConnections) drop(one *connection) {
	one.Close()
	h.places <- struct{}{}
}

// close closes what is kept, and later what is in use.
func (h *hostConnections) close() {
	h.lock.Lock()
	kept := h.kept
	h.kept, h.isClosed = nil, true
	h.lock.Unlock()
	for _, one := range kept {
		one.Close()
	}
}

func (h *hostConnections) connect(ctx context.Context, deadline time.Time) (*connection, error) {
	until := time.Now().Add(h.connectTimeout)
	if until.After(deadline) {
		until = deadline
	}
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	select {
	case <-h.resolved:
	case <-ctx.Done():
		return nil, noConnection(deadline)
	}
	address := h.addresses.take(time.Now())
	made, err := h.connectTo(ctx, address)
	if err != nil {
		h.addresses.noteFailed(address, time.Now())
		return nil, noConnection(deadline)
	}
	return made, nil
}

func (h *hostConnections) connectTo(ctx context.Context, address netip.AddrPort) (*connection, error) {
	dialer := net.Dialer{KeepAlive: -1}
	dialed, err := dialer.DialContext(ctx, "tcp", address.String())
	if err != nil {
		return nil, err
	}
	made := &connection{Conn: dialed, tcp: dialed, received: make([]byte, receiveBytes)}
	if made.raw, err = dialed.(*net.TCPConn).SyscallConn(); err != nil {
		dialed.Close()
		return nil, err
	}
	if h.tls != nil {
		shaken := tls.Client(dialed, h.tls)
		made.Conn = shaken
		if err := shaken.HandshakeContext(ctx); err != nil {
			dialed.Close()
			return nil, err
		}
	}
	return made, nil
}

func noConnection(deadline time.Time) error {
	if time.Now().Before(deadline) {
		return errNoConnection
	}
	return errLate
}
