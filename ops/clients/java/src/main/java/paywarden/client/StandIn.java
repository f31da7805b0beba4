package paywarden.client;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Deque;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/** Decides by a policy, and counts by card. Not safe for threads: the client holds a lock. */
final class StandIn {
    /** Payments kept for a card. With so many within the longest window, every limit by card holds. */
    static final int PAYMENTS_OF_CARD_MAX = 128;

    private record Counted(double atMs, String paymentId, long amount, String currency) {}

    private final StandInPolicy policy;
    private final int cardsMax;
    /** In the order of each card's newest payment. */
    private final Map<String, Deque<Counted>> cards = new LinkedHashMap<>();

    StandIn(StandInPolicy policy, int cardsMax) {
        this.policy = policy;
        this.cardsMax = cardsMax;
    }

    /** Returns the decision. {@code nowMs} is of a clock that never goes back. */
    Decision decide(Payment payment, String cause, double nowMs) {
        Collection<Counted> earlier = policy.windowMs > 0 ? earlierOf(payment, nowMs) : List.of();
        List<StandInPolicy.Limit> holding = new ArrayList<>();
        for (StandInPolicy.Limit limit : policy.limits) {
            if (holds(limit, payment, earlier, nowMs)) {
                holding.add(limit);
            }
        }
        String action =
                holding.isEmpty()
                        ? policy.otherwise
                        : holding.stream().anyMatch(limit -> limit.action().equals(Decision.DECLINE))
                                ? Decision.DECLINE
                                : Decision.REVIEW;
        List<String> reasons = new ArrayList<>(List.of("stand_in:" + cause));
        for (StandInPolicy.Limit limit : holding) {
            if (limit.action().equals(action)) {
                reasons.add("limit:" + limit.name());
            }
        }
        if (policy.windowMs > 0 && !action.equals(Decision.DECLINE)) {
            note(payment, nowMs);
        }
        return new Decision(
                payment.paymentId(), action, "", null, List.copyOf(reasons), "", List.of("stand_in"), null, true);
    }

    private Collection<Counted> earlierOf(Payment payment, double nowMs) {
        Deque<Counted> kept = cards.get(payment.cardId());
        if (kept == null) {
            return List.of();
        }
        while (!kept.isEmpty() && nowMs - kept.peekFirst().atMs() >= policy.windowMs) {
            kept.removeFirst();
        }
        // The same payment, asked again, counts once.
        return kept.stream().filter(one -> !one.paymentId().equals(payment.paymentId())).toList();
    }

    private void note(Payment payment, double nowMs) {
        Deque<Counted> kept = cards.remove(payment.cardId());
        if (kept == null) {
            kept = new ArrayDeque<>();
            if (cards.size() >= cardsMax) {
                cards.remove(cards.keySet().iterator().next());
            }
        }
        cards.put(payment.cardId(), kept);
        if (kept.stream().noneMatch(one -> one.paymentId().equals(payment.paymentId()))) {
            if (kept.size() == PAYMENTS_OF_CARD_MAX) {
                kept.removeFirst();
            }
            kept.addLast(new Counted(nowMs, payment.paymentId(), payment.amountMinor(), payment.currency()));
        }
    }

    private static boolean holds(
            StandInPolicy.Limit limit, Payment payment, Collection<Counted> earlier, double nowMs) {
        if (limit.amountOver() != null && !isOver(payment.amountMinor(), payment.currency(), limit.amountOver())) {
            return false;
        }
        if (limit.mccIn() != null && !hasMcc(limit, payment.mcc())) {
            return false;
        }
        if (limit.windowMs() == 0 || earlier.size() >= PAYMENTS_OF_CARD_MAX) {
            return true;
        }
        int count = 1;
        long sum = payment.amountMinor();
        for (Counted one : earlier) {
            if (nowMs - one.atMs() < limit.windowMs()) {
                count++;
                sum += Objects.equals(one.currency(), payment.currency()) ? one.amount() : 0;
            }
        }
        if (limit.cardCountOver() != null && count <= limit.cardCountOver()) {
            return false;
        }
        return limit.cardSumOver() == null || isOver(sum, payment.currency(), limit.cardSumOver());
    }

    private static boolean hasMcc(StandInPolicy.Limit limit, String mcc) {
        if (mcc == null || mcc.isEmpty()) {
            return limit.mccMayBeMissing();
        }
        return limit.mccIn().stream().anyMatch(pair -> pair[0].compareTo(mcc) <= 0 && mcc.compareTo(pair[1]) <= 0);
    }

    /** Returns whether an amount is over its currency's limit, or that of "*". A currency without one is over. */
    private static boolean isOver(double amount, String currency, Map<String, Double> largest) {
        Double most = largest.getOrDefault(currency, largest.get("*"));
        return most == null || amount > most;
    }
}
