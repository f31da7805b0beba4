package paywarden.client;

import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.regex.Pattern;

/**
 * Which host a call asks, and whether it asks once more. A request that was sent may have been decided, so its retry
 * meets the same host, which knows the payment's id.
 */
final class CallPlan {
    /** A host that said that it cannot, or could not be reached, is asked again after this pause. */
    static final double RETRY_PAUSE_MS = 5.0;
    /** A retry begins only if this much of the deadline is left after the pause. */
    static final double RETRY_LEFT_MS_MIN = 5.0;

    static final int ATTEMPTS_MAX = 2;
    /** How long new payments avoid a host that refused a connection or said that it closes one. */
    static final long AVOID_NS = 1_000_000_000L;

    static final int DEADLINE_MS_MAX = 600_000;
    /** What an attempt met, when it is no cause of a stand-in. */
    static final String REFUSED = "refused";

    /** There is no such host, and no second attempt. */
    static final int NO_HOST = -1, NO_RETRY = -1;

    private static final Pattern TRACEPARENT = Pattern.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}");

    private final List<Integer> order;
    int attempts = 1;
    int host;
    /** The host that the request may have reached, or NO_HOST. */
    int sentTo;

    CallPlan(List<Integer> order, Collection<Integer> avoided, int pinned) {
        this.order = order;
        sentTo = pinned;
        host = pinned;
        if (pinned == NO_HOST) {
            host = order.stream().filter(place -> !avoided.contains(place)).findFirst().orElse(order.get(0));
        }
    }

    void sent() {
        sentTo = host;
    }

    /**
     * Returns the pause before a second attempt in milliseconds, or NO_RETRY.
     *
     * @param met REFUSED, {@link Answers#BROKEN}, or a status as text
     */
    double retryPauseMs(String met, double leftMs) {
        boolean isRefused = met.equals(REFUSED), isBroken = met.equals(Answers.BROKEN);
        if (attempts >= ATTEMPTS_MAX || !(isRefused || isBroken || met.equals("503"))) {
            return NO_RETRY;
        }
        int next = host;
        double pauseMs = isBroken ? 0.0 : RETRY_PAUSE_MS;
        if (isRefused && sentTo == NO_HOST && order.size() > 1) {
            next = order.get((order.indexOf(host) + 1) % order.size());
            pauseMs = 0.0;
        }
        if (leftMs - pauseMs < RETRY_LEFT_MS_MIN) {
            return NO_RETRY;
        }
        attempts++;
        host = next;
        return pauseMs;
    }

    /** Returns the cause of a stand-in by what the last attempt met, other than a status. */
    static String causeOf(String met) {
        return met.equals(REFUSED) ? Answers.UNREACHABLE : met;
    }

    /** Returns the value of {@code x-deadline-ms}: what is left, in whole milliseconds. */
    static int deadlineHeader(double leftMs) {
        return (int) Math.min(Math.max(Math.floor(leftMs + 0.5), 1), DEADLINE_MS_MAX);
    }

    /** Returns names and values in turn. What is null is left out, and so is a traceparent of another form. */
    static List<String> headersOf(int deadlineMs, String token, String route, String traceparent) {
        List<String> headers = new ArrayList<>(12);
        headers.addAll(List.of("content-type", "application/json", "x-deadline-ms", String.valueOf(deadlineMs)));
        if (token != null) {
            headers.addAll(List.of("authorization", "Bearer " + token));
        }
        if (route != null) {
            headers.addAll(List.of(Routing.HEADER, route));
        }
        if (traceparent != null && TRACEPARENT.matcher(traceparent).matches()) {
            headers.addAll(List.of("traceparent", traceparent));
        }
        return headers;
    }
}
