package paywarden.client;

import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLongArray;
import java.util.concurrent.locks.LockSupport;

/**
 * Asks the service for decisions. Any number of threads may call it. ops/clients/SPECIFICATION.md says what it does, rule
 * by rule.
 *
 * <pre>{@code
 * try (PaywardenClient client = new PaywardenClient(new ClientSettings("https://paywarden:8443").token(key))) {
 *     Decision decision = client.score(Payment.of("p-1", now, "card-000001", "merchant-0001", 4999, "EUR"));
 *     decision.action();   // "approve", "review" or "decline"
 *     decision.standIn();  // true if the service did not answer in time
 * }
 * }</pre>
 */
public final class PaywardenClient implements AutoCloseable {
    public static final String VERSION = "1.0.0";

    private static final String SCORE = "score", SHADOW = "shadow", RECONCILE = "reconcile";
    /** Shadow calls that are asked at a time; further ones wait. */
    private static final int SHADOW_THREADS = 8;
    /** Names are resolved at most ten times a second, however many connections fail. */
    private static final long RESOLVE_APART_MS = 100;
    /** How long `close` waits for a thread that asks about a stand-in, or for a name. */
    private static final long JOIN_MS = 1500;

    /** One call, from its begin to its end. */
    private static final class Call {
        final String operation;
        final Payment payment;
        final byte[] body;
        final CallPlan plan;
        final String route, traceparent;
        final long beganNs;
        long deadlineNs;

        Call(String operation, Payment payment, byte[] body, CallPlan plan, String route, String traceparent, long beganNs) {
            this.operation = operation;
            this.payment = payment;
            this.body = body;
            this.plan = plan;
            this.route = route;
            this.traceparent = traceparent;
            this.beganNs = beganNs;
        }

        double leftMs() {
            return (deadlineNs - System.nanoTime()) / 1e6;
        }
    }

    /** What an attempt met: an answer, or a word. */
    private record Met(String word, int status, byte[] body) {
        static Met of(String word) {
            return new Met(word, 0, null);
        }
    }

    private final ClientSettings settings;
    private final Hooks hooks;
    private final List<HostConnections> hosts = new ArrayList<>();
    private final AtomicLongArray avoidedUntilNs;
    private final CountDownLatch ending = new CountDownLatch(1);
    private final Semaphore wakesResolver = new Semaphore(0);
    private final Semaphore shadows;
    private final List<Thread> threads = new ArrayList<>();
    private final long madeNs = System.nanoTime();

    /** Guards stand-ins, queue and threads. */
    private final Object lock = new Object();

    private final StandIn standIn;
    private final ReconcileQueue queue;
    private volatile int queued;
    private volatile boolean isClosed;
    private boolean isReconciling;
    private ExecutorService shadowThreads;

    /** Raises WrongSettings. */
    public PaywardenClient(ClientSettings settings) {
        this(settings, new Hooks() {});
    }

    /** Raises WrongSettings. */
    public PaywardenClient(ClientSettings settings, Hooks hooks) {
        this.settings = settings.checked();
        this.hooks = hooks;
        var tls = this.settings.tls();
        for (String url : this.settings.urls) {
            hosts.add(new HostConnections(ClientSettings.Target.of(url), this.settings, tls));
        }
        avoidedUntilNs = new AtomicLongArray(hosts.size());
        for (int place = 0; place < hosts.size(); place++) {
            avoidedUntilNs.set(place, madeNs);
        }
        shadows = new Semaphore(this.settings.shadowMax);
        standIn = new StandIn(this.settings.policy, this.settings.cardsMax);
        queue = new ReconcileQueue(this.settings.queueMax);
        List<HostConnections> named = hosts.stream().filter(host -> host.isNamed).toList();
        if (!named.isEmpty()) {
            start(() -> resolve(named));
        }
    }

    /** Returns the service's decision, or a stand-in, by the deadline. Raises WrongRequest. */
    public Decision score(Payment payment) {
        return score(payment, settings.deadlineMs, null);
    }

    /**
     * The same with a deadline of its own.
     *
     * @param traceparent passed on if it has W3C's form of version 00; or null
     */
    public Decision score(Payment payment, double deadlineMs, String traceparent) {
        Call call = begin(payment, deadlineMs, traceparent, SCORE);
        Answers.End end = endOf(call);
        if (end.refusal() != null) {
            endWaiting(payment.paymentId(), null, ReconcileQueue.REFUSED);
            count(call, ReconcileQueue.REFUSED);
            throw end.refusal();
        }
        return finish(call, end);
    }

    /** Returns {@code own} at once, and asks the service in the background: {@code onShadow} gets both. Never raises. */
    public <Own> Own shadow(Payment payment, Own own) {
        return shadow(payment, own, null);
    }

    /** The same with a traceparent. */
    public <Own> Own shadow(Payment payment, Own own, String traceparent) {
        if (isClosed || !shadows.tryAcquire()) {
            shadowed(own, null, Answers.End.of(isClosed ? Answers.CLOSED : Answers.BUSY));
            return own;
        }
        long deadlineNs = System.nanoTime() + (long) (settings.deadlineMs * 1e6);
        try {
            shadowThreads().execute(() -> runShadow(payment, own, traceparent, deadlineNs));
        } catch (RejectedExecutionException error) {
            // It was closed in this moment.
            shadows.release();
            shadowed(own, null, Answers.End.of(Answers.CLOSED));
        }
        return own;
    }

    /** Returns how many stand-ins wait to be asked about again. */
    public int waitingCount() {
        return queued;
    }

    /** Closes the connections; {@code onReconciled} gets what waits. Calls from now on are stand-ins. */
    @Override
    public void close() {
        List<ReconcileQueue.Waiting> left;
        ExecutorService shadowing;
        List<Thread> running;
        synchronized (lock) {
            isClosed = true;
            left = queue.drain();
            queued = 0;
            shadowing = shadowThreads;
            running = List.copyOf(threads);
        }
        left.forEach(one -> reconciled(one.standIn, null, Answers.CLOSED));
        ending.countDown();
        wakesResolver.release();
        try {
            if (shadowing != null) {
                shadowing.shutdown();
                shadowing.awaitTermination((long) settings.deadlineMs + JOIN_MS, TimeUnit.MILLISECONDS);
            }
            for (Thread thread : running) {
                thread.join(JOIN_MS);
            }
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
        }
        hosts.forEach(HostConnections::close);
    }

    // A call

    private Call begin(Payment payment, double deadlineMs, String traceparent, String operation) {
        long beganNs = System.nanoTime();
        if (!(deadlineMs >= 1 && deadlineMs <= CallPlan.DEADLINE_MS_MAX)) {
            throw WrongRequest.notSent("deadline_ms", "wanted 1 to " + CallPlan.DEADLINE_MS_MAX);
        }
        byte[] body = payment.body();
        String route = settings.routeKey == null ? null : Routing.routeOf(settings.routeKey, payment.cardId());
        List<Integer> order = List.of(0), avoided = new ArrayList<>(0);
        int pinned = CallPlan.NO_HOST;
        if (hosts.size() > 1) {
            order = Routing.hostOrder(route == null ? payment.cardId() : route, settings.urls);
            for (int place = 0; place < hosts.size(); place++) {
                if (avoidedUntilNs.get(place) - beganNs > 0) {
                    avoided.add(place);
                }
            }
            if (queued > 0) {
                synchronized (lock) {
                    pinned = queue.pinned(payment.paymentId());
                }
            }
        }
        CallPlan plan = new CallPlan(order, avoided, pinned);
        Call call = new Call(operation, payment, body, plan, route, traceparent, beganNs);
        call.deadlineNs = beganNs + (long) (deadlineMs * 1e6);
        return call;
    }

    private Answers.End endOf(Call call) {
        while (true) {
            Met met = attempt(call);
            if (!call.operation.equals(RECONCILE) && !isClosed) {
                String word = met.word() == null ? String.valueOf(met.status()) : met.word();
                double pauseMs = call.plan.retryPauseMs(word, call.leftMs());
                if (pauseMs != CallPlan.NO_RETRY) {
                    pause(pauseMs);
                    continue;
                }
            }
            if (met.word() != null) {
                return Answers.End.of(CallPlan.causeOf(met.word()));
            }
            return Answers.read(call.payment.paymentId(), met.status(), met.body());
        }
    }

    private static void pause(double pauseMs) {
        long untilNs = System.nanoTime() + (long) (pauseMs * 1e6);
        for (long leftNs = (long) (pauseMs * 1e6); leftNs > 0; leftNs = untilNs - System.nanoTime()) {
            LockSupport.parkNanos(leftNs);
            if (Thread.currentThread().isInterrupted()) {
                return;
            }
        }
    }

    private Met attempt(Call call) {
        if (isClosed) {
            return Met.of(Answers.CLOSED);
        }
        int place = call.plan.host;
        HostConnections host = hosts.get(place);
        HostConnections.Connection connection;
        try {
            connection = host.take(call.deadlineNs, call.plan.attempts > 1);
        } catch (HostConnections.NoConnection error) {
            avoid(place);
            wakesResolver.release();
            return Met.of(CallPlan.REFUSED);
        } catch (HostConnections.NoneFree error) {
            return Met.of(Answers.BUSY);
        } catch (HostConnections.DeadlinePassed error) {
            return Met.of(Answers.LATE);
        }
        AnswerReader answer = null;
        try {
            byte[] request = request(call, host.target);
            call.plan.sent();
            answer = connection.exchange(request, call.deadlineNs);
        } catch (HostConnections.DeadlinePassed error) {
            return Met.of(Answers.LATE);
        } catch (AnswerReader.NoAnswer error) {
            return Met.of(Answers.FAILED);
        } catch (IOException error) {
            return Met.of(Answers.BROKEN);
        } catch (RuntimeException error) {
            // The function that gives the token failed, or gave none.
            return Met.of(Answers.FAILED);
        } finally {
            if (answer != null && answer.keeps) {
                host.giveBack(connection);
            } else {
                host.drop(connection);
            }
        }
        if (answer.saysClose) {
            avoid(place);
        }
        return new Met(null, answer.status, answer.body);
    }

    private byte[] request(Call call, ClientSettings.Target target) {
        String token = settings.token == null ? null : ClientSettings.requireToken(settings.token.get());
        int deadlineMs = CallPlan.deadlineHeader(call.leftMs());
        List<String> headers = CallPlan.headersOf(deadlineMs, token, call.route, call.traceparent);
        headers.addAll(List.of("user-agent", "paywarden-client-java/" + VERSION));
        return AnswerReader.request(target.path(), target.authority(), headers, call.body);
    }

    private void avoid(int place) {
        avoidedUntilNs.set(place, System.nanoTime() + CallPlan.AVOID_NS);
    }

    /** Returns what the caller gets: the decision, or a stand-in, which waits in the queue from now on. */
    private Decision finish(Call call, Answers.End end) {
        if (end.decision() != null) {
            if (queued > 0) {
                endWaiting(call.payment.paymentId(), end.decision(), ReconcileQueue.ANSWERED);
            }
            count(call, ReconcileQueue.ANSWERED);
            return end.decision();
        }
        Decision decision;
        boolean waits, wasClosed;
        synchronized (lock) {
            long nowNs = System.nanoTime();
            decision = standIn.decide(call.payment, end.cause(), (nowNs - madeNs) / 1e6);
            wasClosed = isClosed;
            waits = !wasClosed && queue.put(call.payment, decision, call.plan.sentTo, nowNs);
            queued = queue.size();
            if (waits && !isReconciling) {
                isReconciling = true;
                start(this::reconcile);
            }
        }
        if (!waits) {
            reconciled(decision, null, wasClosed ? Answers.CLOSED : ReconcileQueue.FULL);
        }
        count(call, end.cause());
        return decision;
    }

    // In the background

    private void start(Runnable work) {
        Thread thread = new Thread(work, "paywarden-client");
        thread.setDaemon(true);
        threads.add(thread);
        thread.start();
    }

    private ExecutorService shadowThreads() {
        synchronized (lock) {
            if (isClosed) {
                throw new RejectedExecutionException();
            }
            if (shadowThreads == null) {
                shadowThreads =
                        Executors.newFixedThreadPool(
                                SHADOW_THREADS,
                                work -> {
                                    Thread thread = new Thread(work, "paywarden-shadow");
                                    thread.setDaemon(true);
                                    return thread;
                                });
            }
            return shadowThreads;
        }
    }

    private void runShadow(Payment payment, Object own, String traceparent, long deadlineNs) {
        Call call = null;
        Answers.End end;
        try {
            call = begin(payment, settings.deadlineMs, traceparent, SHADOW);
            call.deadlineNs = deadlineNs;
            end = endOf(call);
        } catch (WrongRequest error) {
            end = Answers.End.of(error);
        } catch (RuntimeException error) {
            // Shadow mode changes nothing for the caller.
            end = Answers.End.of(Answers.FAILED);
        }
        shadows.release();
        shadowed(own, call, end);
    }

    private void reconcile() {
        while (!isClosed) {
            ReconcileQueue.Waiting one;
            Long dueNs;
            synchronized (lock) {
                one = queue.takeDue(System.nanoTime());
                dueNs = queue.nextDueNs();
            }
            if (one == null) {
                // A stand-in that comes meanwhile is due in a second at the earliest.
                long leftNs = dueNs == null ? 1_000_000_000L : dueNs - System.nanoTime();
                waitFor(Math.min(Math.max(leftNs, 0), 1_000_000_000L));
                continue;
            }
            askAgain(one);
            waitFor(ReconcileQueue.APART_MS * 1_000_000);
        }
    }

    private void askAgain(ReconcileQueue.Waiting one) {
        Call call = begin(one.payment, ReconcileQueue.DEADLINE_MS, null, RECONCILE);
        Answers.End end = endOf(call);
        if (end.decision() != null) {
            endWaiting(one.payment.paymentId(), end.decision(), ReconcileQueue.ANSWERED);
            count(call, ReconcileQueue.ANSWERED);
        } else if (end.refusal() != null) {
            endWaiting(one.payment.paymentId(), null, ReconcileQueue.REFUSED);
            count(call, ReconcileQueue.REFUSED);
        } else {
            boolean waits;
            synchronized (lock) {
                waits = queue.failed(one, call.plan.sentTo, System.nanoTime());
                queued = queue.size();
            }
            if (!waits) {
                reconciled(one.standIn, null, ReconcileQueue.EXPIRED);
            }
            count(call, end.cause());
        }
    }

    private void resolve(List<HostConnections> named) {
        while (!isClosed) {
            wakesResolver.drainPermits();
            named.forEach(HostConnections::resolve);
            waitFor(RESOLVE_APART_MS * 1_000_000);
            try {
                if (!isClosed && wakesResolver.tryAcquire((long) (settings.resolveS * 1e9), TimeUnit.NANOSECONDS)) {
                    wakesResolver.drainPermits();
                }
            } catch (InterruptedException error) {
                return;
            }
        }
    }

    /** Waits, at most until the client is closed. */
    private void waitFor(long forNs) {
        try {
            ending.await(forNs, TimeUnit.NANOSECONDS);
        } catch (InterruptedException error) {
            // Nobody interrupts these threads, and the loop looks whether the client is closed.
        }
    }

    private void endWaiting(String paymentId, Decision decision, String end) {
        ReconcileQueue.Waiting one;
        synchronized (lock) {
            one = queue.end(paymentId);
            queued = queue.size();
        }
        if (one != null) {
            reconciled(one.standIn, decision, end);
        }
    }

    // Hooks

    private void count(Call call, String outcome) {
        drop(() -> hooks.onCall(call.operation, outcome, (System.nanoTime() - call.beganNs) / 1e9, call.plan.attempts));
    }

    private void reconciled(Decision standIn, Decision decision, String end) {
        drop(() -> hooks.onReconciled(standIn, decision, end));
    }

    private void shadowed(Object own, Call call, Answers.End end) {
        drop(() -> hooks.onShadow(own, end.decision(), end.cause()));
        String outcome = end.decision() != null ? ReconcileQueue.ANSWERED : end.cause();
        if (call != null) {
            count(call, outcome);
        } else {
            drop(() -> hooks.onCall(SHADOW, outcome, 0.0, 0));
        }
    }

    /** Runs a hook and drops its error. */
    private static void drop(Runnable hook) {
        try {
            hook.run();
        } catch (RuntimeException error) {
            // An error of a hook changes no answer.
        }
    }
}
