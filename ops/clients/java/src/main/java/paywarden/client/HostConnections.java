package paywarden.client;

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.SocketTimeoutException;
import java.net.StandardSocketOptions;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLSocket;

/** The connections to one host, the one used last taken first. Times are of {@link System#nanoTime}. */
final class HostConnections {
    private static final int RECEIVE_BYTES = 16 * 1024;
    /** A larger request may fill the socket of a host that does not read: something must end the wait. */
    private static final int SENT_AT_ONCE_BYTES = 16 * 1024;

    /** Closes connections at their deadlines, for all clients of the process. Its thread starts at the first use. */
    private static final ScheduledThreadPoolExecutor CLOSER = closer();

    /** There is no time left. */
    static final class DeadlinePassed extends Exception {
        private static final long serialVersionUID = 1L;

        DeadlinePassed() {
            super(null, null, false, false);
        }
    }

    /** No connection could be made. */
    static final class NoConnection extends Exception {
        private static final long serialVersionUID = 1L;

        NoConnection() {
            super(null, null, false, false);
        }
    }

    /** All connections were in use until the deadline. */
    static final class NoneFree extends Exception {
        private static final long serialVersionUID = 1L;

        NoneFree() {
            super(null, null, false, false);
        }
    }

    /** One connection. A thread has it to itself while it uses it. */
    static final class Connection {
        private final SocketChannel channel;
        private final InputStream in;
        private final OutputStream out;
        private final boolean isTls;
        private final byte[] received = new byte[RECEIVE_BYTES];
        private long usedNs;

        Connection(SocketChannel channel, boolean isTls, InputStream in, OutputStream out) {
            this.channel = channel;
            this.isTls = isTls;
            this.in = in;
            this.out = out;
        }

        /** Returns whether the host has closed the connection, or sent what nobody asked for. */
        boolean isStale() {
            try {
                channel.configureBlocking(false);
                int count = channel.read(ByteBuffer.wrap(received, 0, 1));
                channel.configureBlocking(true);
                return count != 0;
            } catch (IOException error) {
                return true;
            }
        }

        /** Sends a request and returns its whole answer. An IOException is NoAnswer, or says that it broke. */
        AnswerReader exchange(byte[] request, long deadlineNs) throws DeadlinePassed, IOException {
            // With TLS a read is many reads of the socket, and the time limit of each starts again.
            Future<?> closing = isTls || request.length > SENT_AT_ONCE_BYTES ? closeAt(channel, deadlineNs) : null;
            try {
                out.write(request);
                out.flush();
                return answer(deadlineNs);
            } catch (AnswerReader.NoAnswer error) {
                throw error;
            } catch (IOException error) {
                if (deadlineNs - System.nanoTime() <= 0) {
                    throw new DeadlinePassed();
                }
                throw error;
            } finally {
                if (closing != null) {
                    closing.cancel(false);
                }
            }
        }

        private AnswerReader answer(long deadlineNs) throws DeadlinePassed, IOException {
            AnswerReader reader = new AnswerReader();
            while (true) {
                int count = receive(deadlineNs);
                if (count < 0) {
                    if (reader.end()) {
                        return reader;
                    }
                    throw new IOException("the connection has ended");
                }
                if (reader.feed(received, count)) {
                    return reader;
                }
            }
        }

        private int receive(long deadlineNs) throws DeadlinePassed, IOException {
            try {
                channel.socket().setSoTimeout(millisecondsLeft(deadlineNs));
                return in.read(received);
            } catch (SocketTimeoutException error) {
                throw new DeadlinePassed();
            }
        }

        void close() {
            closeQuietly(channel);
        }
    }

    /** The addresses of a host's name, in turn. One that could not be reached is left out for a second. */
    static final class Addresses {
        private final Map<InetAddress, Long> failedNs = new HashMap<>();
        private List<InetAddress> all = List.of();
        private int next;

        synchronized void set(List<InetAddress> found) {
            all = found;
            // What failed of other addresses says nothing any more.
            failedNs.keySet().retainAll(found);
        }

        /** Returns the next address; one that failed if all have. */
        synchronized InetAddress take(long nowNs) {
            int first = next;
            for (int place = first; place < first + all.size(); place++) {
                InetAddress one = all.get(place % all.size());
                Long failed = failedNs.get(one);
                if (failed == null || nowNs - failed >= CallPlan.AVOID_NS) {
                    next = (place + 1) % all.size();
                    return one;
                }
            }
            next = (first + 1) % all.size();
            return all.get(first % all.size());
        }

        synchronized void failed(InetAddress address, long nowNs) {
            failedNs.put(address, nowNs);
        }
    }

    final ClientSettings.Target target;
    final boolean isNamed;
    private final SSLContext tls;
    private final long idleNs, connectNs;
    private final Semaphore places;
    private final Deque<Connection> kept = new ArrayDeque<>();
    private final CountDownLatch resolved = new CountDownLatch(1);
    private final Addresses addresses = new Addresses();
    private boolean isClosed;

    HostConnections(ClientSettings.Target target, ClientSettings settings, SSLContext tls) {
        this.target = target;
        this.tls = target.isTls() ? tls : null;
        idleNs = (long) (settings.idleMs * 1e6);
        connectNs = (long) (settings.connectTimeoutMs * 1e6);
        places = new Semaphore(settings.connectionsMax);
        // A host that is an address and no name is not asked for.
        isNamed = !target.host().contains(":") && !target.host().matches("[0-9]{1,3}(\\.[0-9]{1,3}){3}");
        if (!isNamed) {
            resolve();
        }
    }

    /** Asks for the addresses of the host's name. It may take long. Without any, the earlier ones stay. */
    void resolve() {
        try {
            addresses.set(List.of(InetAddress.getAllByName(target.host())));
            resolved.countDown();
        } catch (IOException error) {
            // It has none now.
        }
    }

    /** Returns a connection for this thread alone; giveBack or drop it. {@code isFresh}: not a kept one. */
    Connection take(long deadlineNs, boolean isFresh) throws NoneFree, NoConnection, DeadlinePassed {
        takePlace(deadlineNs);
        boolean isTaken = false;
        try {
            for (Connection one = isFresh ? null : lastKept(); one != null; one = lastKept()) {
                if (System.nanoTime() - one.usedNs < idleNs && !one.isStale()) {
                    isTaken = true;
                    return one;
                }
                one.close();
            }
            Connection made = connect(deadlineNs);
            isTaken = true;
            return made;
        } finally {
            if (!isTaken) {
                places.release();
            }
        }
    }

    private void takePlace(long deadlineNs) throws NoneFree, DeadlinePassed {
        try {
            if (!places.tryAcquire() && !places.tryAcquire(deadlineNs - System.nanoTime(), TimeUnit.NANOSECONDS)) {
                throw new NoneFree();
            }
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
            throw new DeadlinePassed();
        }
    }

    private synchronized Connection lastKept() {
        return kept.pollLast();
    }

    /** Keeps a connection for later. */
    void giveBack(Connection one) {
        one.usedNs = System.nanoTime();
        List<Connection> leaving = new ArrayList<>(0);
        synchronized (this) {
            kept.addLast(one);
            // The longest unused one is first.
            while (!kept.isEmpty() && (isClosed || one.usedNs - kept.peekFirst().usedNs >= idleNs)) {
                leaving.add(kept.removeFirst());
            }
        }
        leaving.forEach(Connection::close);
        places.release();
    }

    /** Closes a connection. */
    void drop(Connection one) {
        one.close();
        places.release();
    }

    /** Closes what is kept, and later what is in use. */
    void close() {
        List<Connection> leaving;
        synchronized (this) {
            isClosed = true;
            leaving = List.copyOf(kept);
            kept.clear();
        }
        leaving.forEach(Connection::close);
    }

    private Connection connect(long deadlineNs) throws NoConnection, DeadlinePassed {
        long untilNs = System.nanoTime() + connectNs;
        untilNs = untilNs - deadlineNs > 0 ? deadlineNs : untilNs;
        SocketChannel channel = null;
        InetAddress address = null;
        Future<?> closing = null;
        try {
            if (!resolved.await(untilNs - System.nanoTime(), TimeUnit.NANOSECONDS)) {
                throw new SocketTimeoutException();
            }
            address = addresses.take(System.nanoTime());
            channel = SocketChannel.open();
            channel.setOption(StandardSocketOptions.TCP_NODELAY, true);
            channel.socket().connect(new InetSocketAddress(address, target.port()), millisecondsLeft(untilNs));
            if (tls == null) {
                return new Connection(
                        channel, false, channel.socket().getInputStream(), channel.socket().getOutputStream());
            }
            closing = closeAt(channel, untilNs);
            return shakeHands(channel, untilNs);
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
            throw new NoConnection();
        } catch (IOException error) {
            closeQuietly(channel);
            if (address != null) {
                addresses.failed(address, System.nanoTime());
            }
            if (deadlineNs - System.nanoTime() <= 0) {
                throw new DeadlinePassed();
            }
            throw new NoConnection();
        } finally {
            if (closing != null) {
                closing.cancel(false);
            }
        }
    }

    private Connection shakeHands(SocketChannel channel, long untilNs) throws IOException {
        channel.socket().setSoTimeout(millisecondsLeft(untilNs));
        SSLSocket socket =
                (SSLSocket) tls.getSocketFactory().createSocket(channel.socket(), target.host(), target.port(), false);
        SSLParameters parameters = socket.getSSLParameters();
        parameters.setEndpointIdentificationAlgorithm("HTTPS");
        parameters.setApplicationProtocols(new String[] {"http/1.1"});
        socket.setSSLParameters(parameters);
        socket.startHandshake();
        return new Connection(channel, true, socket.getInputStream(), socket.getOutputStream());
    }

    /** Returns what is left, rounded up to milliseconds. Raises SocketTimeoutException if nothing is. */
    private static int millisecondsLeft(long untilNs) throws SocketTimeoutException {
        long leftNs = untilNs - System.nanoTime();
        if (leftNs <= 0) {
            throw new SocketTimeoutException();
        }
        return (int) ((leftNs + 999_999) / 1_000_000);
    }

    /** Closes a channel at a time, unless that is cancelled before. */
    private static Future<?> closeAt(SocketChannel channel, long untilNs) {
        return CLOSER.schedule(() -> closeQuietly(channel), untilNs - System.nanoTime(), TimeUnit.NANOSECONDS);
    }

    private static ScheduledThreadPoolExecutor closer() {
        ScheduledThreadPoolExecutor made =
                new ScheduledThreadPoolExecutor(
                        1,
                        work -> {
                            Thread thread = new Thread(work, "paywarden-deadlines");
                            thread.setDaemon(true);
                            return thread;
                        });
        // Else each call would hold its connection until its deadline.
        made.setRemoveOnCancelPolicy(true);
        return made;
    }

    private static void closeQuietly(SocketChannel channel) {
        if (channel != null) {
            try {
                channel.close();
            } catch (IOException error) {
                // It is closed as far as it can be.
            }
        }
    }
}
