package paywarden.client;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.PriorityQueue;

/** The stand-ins that wait to be asked about again, by payment id. Not safe for threads: the client holds a lock. */
final class ReconcileQueue {
    static final double FIRST_PAUSE_MS = 1000.0, LONGEST_PAUSE_MS = 30_000.0;
    /** The service remembers a decision for 600 s. Beyond that, a repeated payment would be decided again. */
    static final double GIVE_UP_MS = 540_000.0;

    /** Of a payment that is asked about again. */
    static final double DEADLINE_MS = 1000.0;
    /** Between two of them: at most 50 a second. */
    static final long APART_MS = 20;

    static final String ANSWERED = "answered", REFUSED = "refused", EXPIRED = "expired", FULL = "full";

    /** A stand-in that waits. */
    static final class Waiting {
        final Payment payment;
        final long begunNs;
        Decision standIn;
        /** The host that the payment may have been sent to, or CallPlan.NO_HOST. */
        int pinned;

        int asked;
        long dueNs;

        Waiting(Payment payment, Decision standIn, int pinned, long begunNs) {
            this.payment = payment;
            this.standIn = standIn;
            this.pinned = pinned;
            this.begunNs = begunNs;
        }
    }

    private record Due(long dueNs, String paymentId) {}

    private final int waitingMax;
    private final Map<String, Waiting> waiting = new LinkedHashMap<>();
    /** When what is due. An entry whose time is not the payment's any more is skipped. */
    private final PriorityQueue<Due> due =
            new PriorityQueue<>((first, second) -> Long.signum(first.dueNs() - second.dueNs()));

    ReconcileQueue(int waitingMax) {
        this.waitingMax = waitingMax;
    }

    /**
     * Returns when to ask next, in milliseconds from the stand-in; null to give up.
     *
     * @param asked how often the payment was asked about since
     * @param sinceMs when the last answer failed; 0 at first
     */
    static Double nextDueMs(int asked, double sinceMs) {
        double dueMs = sinceMs + Math.min(FIRST_PAUSE_MS * (1 << Math.min(asked, 10)), LONGEST_PAUSE_MS);
        return dueMs > GIVE_UP_MS ? null : (Double) dueMs;
    }

    int size() {
        return waiting.size();
    }

    int pinned(String paymentId) {
        Waiting one = waiting.get(paymentId);
        return one == null ? CallPlan.NO_HOST : one.pinned;
    }

    /** Lets a stand-in wait, in the place of an earlier one of the payment. Returns false if there is no room. */
    boolean put(Payment payment, Decision standIn, int pinned, long nowNs) {
        Waiting one = waiting.get(payment.paymentId());
        if (one != null) {
            one.standIn = standIn;
            one.pinned = pinned == CallPlan.NO_HOST ? one.pinned : pinned;
            return true;
        }
        if (waiting.size() >= waitingMax) {
            return false;
        }
        one = new Waiting(payment, standIn, pinned, nowNs);
        waiting.put(payment.paymentId(), one);
        plan(one, 0.0);
        return true;
    }

    /** Takes a payment out of the queue. Returns null if it was not there. */
    Waiting end(String paymentId) {
        return waiting.remove(paymentId);
    }

    /** Returns when the next payment is due; null if none waits. */
    Long nextDueNs() {
        while (!due.isEmpty()) {
            Waiting one = waiting.get(due.peek().paymentId());
            if (one != null && one.dueNs == due.peek().dueNs()) {
                return one.dueNs;
            }
            due.remove();
        }
        return null;
    }

    /** Returns the payment that is due, which stays in the queue; null if none is. */
    Waiting takeDue(long nowNs) {
        Long dueNs = nextDueNs();
        if (dueNs == null || dueNs - nowNs > 0) {
            return null;
        }
        Waiting one = waiting.get(due.remove().paymentId());
        one.asked++;
        return one;
    }

    /** Plans to ask again. Returns false if it is too late for that: the payment is out of the queue. */
    boolean failed(Waiting one, int sentTo, long nowNs) {
        if (waiting.get(one.payment.paymentId()) != one) {
            // It has ended meanwhile, and its hook was called.
            return true;
        }
        if (one.pinned == CallPlan.NO_HOST) {
            one.pinned = sentTo;
        }
        if (plan(one, (nowNs - one.begunNs) / 1e6)) {
            return true;
        }
        waiting.remove(one.payment.paymentId());
        return false;
    }

    /** Returns what waits, and empties the queue. */
    List<Waiting> drain() {
        List<Waiting> left = new ArrayList<>(waiting.values());
        waiting.clear();
        due.clear();
        return left;
    }

    private boolean plan(Waiting one, double sinceMs) {
        Double dueMs = nextDueMs(one.asked, sinceMs);
        if (dueMs == null) {
            return false;
        }
        one.dueNs = one.begunNs + (long) (dueMs * 1e6);
        due.add(new Due(one.dueNs, one.payment.paymentId()));
        return true;
    }
}
