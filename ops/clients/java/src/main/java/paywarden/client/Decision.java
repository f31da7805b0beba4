package paywarden.client;

import java.util.List;

/**
 * What was decided about a payment.
 *
 * @param action {@code approve}, {@code review} or {@code decline}
 * @param score the probability of fraud, 0 to 1; null for a stand-in
 * @param profileAgeMs null if it is not known
 * @param standIn true if this process decided, because the service did not: {@code reasons} begins with {@code
 *     stand_in:CAUSE}, and {@code decisionId} and {@code modelVersion} are empty
 */
public record Decision(
        String paymentId,
        String action,
        String decisionId,
        Double score,
        List<String> reasons,
        String modelVersion,
        List<String> flags,
        Long profileAgeMs,
        boolean standIn) {
    static final List<String> ACTIONS = List.of("approve", "review", "decline");
    static final String REVIEW = "review", DECLINE = "decline";
}
